"""What Ctrl-C does: kill the process at once, by the signal itself, or raise KeyboardInterrupt where there is something
to put in order first. Whoever starts vllmctl may have it ignore SIGINT, as a shell does for what runs in the background
(bash(1), "Signals"); that stays so.
"""

import signal


def kills() -> None:
    """From now on Ctrl-C kills the process, silently, as it does programs that know nothing of it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def admit() -> None:
    """Takes a Ctrl-C that has come already, if it was kept waiting.

    Python prints a traceback if SIGINT comes while it starts itself, before any line of ours. Only who starts Python
    can prevent that: `env --block-signal=INT` (coreutils 8.31) keeps the signal back until here.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def raises() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def die() -> None:
    """Ends the process as Ctrl-C does, so that the shell sees it and a loop around vllmctl ends, too."""
    signal.raise_signal(signal.SIGINT)
