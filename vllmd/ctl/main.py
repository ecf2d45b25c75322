"""vllmctl's beginning and end, and the only place where the process exits.

Ctrl-C ends the process by SIGINT itself. While modules are imported, and once all is said, the signal does that alone;
Python would print a traceback. In between there may be a line to end on the terminal. A reader that has left ends the
process with 141, silently, as if SIGPIPE had.
"""

import gc
import os
import sys

from vllmd.ctl import interrupt

FEW_COLLECTIONS = 30_000
"""New objects between two searches for garbage. All that is imported stays: to search it over and over again would take
a twentieth of the time until a question has left."""


def main() -> None:
    """Runs vllmctl on this process's arguments and ends the process."""
    interrupt.kills()
    interrupt.admit()
    gc.set_threshold(FEW_COLLECTIONS)
    from vllmd.ctl.invocation import Invocation
    from vllmd.ctl.run import run
    from vllmd.ctl.terminal import Terminal
    from vllmd.errors import ExitStatus

    terminal = Terminal.standard(os.environ)
    try:
        status = run(sys.argv[1:], Invocation(terminal, os.environ))
    except BrokenPipeError:
        terminal.stdout.abandon()
        status = ExitStatus.PIPE_CLOSED
    except KeyboardInterrupt:
        interrupt.kills()
        terminal.leave()
        interrupt.die()
        status = ExitStatus.INTERRUPTED
    interrupt.kills()
    sys.exit(status)
