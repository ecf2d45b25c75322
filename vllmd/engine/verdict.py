"""Exit status and last lines of an engine → why it ended and what to do about it. Pure.

vLLM's exit status says little: 2 is a bad flag, 1 is everything else, and 0 is both a stop and the death of EngineCore
while serving. So a verdict rests on whether the end was asked for, on whether the engine had been ready, and on its
last lines. Only lines that speak of an error are evidence: vLLM warns in the same words of much that does no harm.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vllmd.engine.causes import CONTEXT, KILLED_FOR_MEMORY, SIGNS, Cause, Sign
from vllmd.engine.phases import split
from vllmd.lifecycle import Verdict

SIGKILL = 9
SIGNALS = {
    1: ("SIGHUP", "somebody other than vllmd sent it"),
    2: ("SIGINT", "somebody other than vllmd sent it"),
    4: ("SIGILL", "this vLLM was built for another processor: install one that was built for this machine"),
    6: ("SIGABRT", "a library gave up: the last lines of the engine's log say why"),
    7: ("SIGBUS", "/dev/shm or a disk is full, or a mapped file was cut short"),
    11: ("SIGSEGV", "a fault in native code: a driver or a library does not fit this version of vLLM"),
    15: ("SIGTERM", "somebody other than vllmd sent it"),
}
"""Numbers of signal(7), the same on x86 and ARM → name, and what they hint at."""

STRIKES_LATE = (
    Cause.OUT_OF_GPU_MEMORY,
    Cause.OUT_OF_MEMORY,
    Cause.NO_SPACE,
    Cause.KILLED_FOR_MEMORY,
    Cause.KILLED,
)
"""Causes that can end an engine which has been serving; the other signs are then of refused requests, or old."""

EVIDENCE_CHARACTERS = 2000
"""No more of a line is looked at."""

MESSAGE_CHARACTERS = 400

KERNEL_KILLED = "the kernel killed a process of the engine for want of memory"
SOMEBODY_KILLED = "somebody killed the engine, or a process of it, with SIGKILL; it was not for want of memory"
WHO_KILLED = "find out who did: an operator, or a script that kills by name"

_READ_LOG = "see the last lines of the engine's log"
_SEARCH_LOG = f"{_READ_LOG}; if no cause stands there, a process of it may have been killed (`journalctl -k`)"

_LOST = r"(?:Worker proc|RayWorkerProc|Process) [^,]{1,100}died unexpectedly"
_ERROR = re.compile(rf"\s*(?:\w+\.)*(\w+(?:Error|Exception|Interrupt)(?:: .*|$)|{_LOST})|.*\berror: (.+)")
_PYDANTIC = re.compile(r"\d+ validation errors? for \w+$")
_END = re.compile(r"(API server: shutdown triggered|EngineDeadError|core exited unexpectedly|died unexpectedly)")
_WRAPPER = re.compile(
    r"EngineDeadError|WorkerProc init|See root cause above|[Ss]ee stack trace|stack trace above|"
    rf"RuntimeError: cancelled$|{_LOST}"
)
_NO_WORDS = re.compile(r"\s|.*:\s+\d+%")
_ELSEWHERE = re.compile(r"[.,:]? *(please )?([Ss]ee|[Cc]heck) (root cause|(the )?stack ?trace).*$")


@dataclass(frozen=True)
class Exit:
    """How a process ended: exactly one of the two is given.

    Args:
        status: what it passed to exit(3).
        signal: the number of the signal that killed it, signal(7).
    """

    status: int | None
    signal: int | None


def explain(exit: Exit, lines: Sequence[str], *, was_ready: bool, asked: bool, oom_kills: int | None = None) -> Verdict:
    """Why the engine ended.

    Args:
        exit: how its leader ended.
        lines: the last lines that it printed; some hundreds, since a traceback for each worker follows the cause.
        was_ready: whether it has served.
        asked: whether vllmd wanted it to end.
        oom_kills: how many processes the kernel has killed for memory meanwhile; None if nobody counts.
    """
    if asked:
        return Verdict(Cause.STOPPED, "the engine was stopped as asked")
    if oom_kills:
        return Verdict(Cause.KILLED_FOR_MEMORY, KERNEL_KILLED, KILLED_FOR_MEMORY.hint)
    if exit.signal == SIGKILL:
        return _struck_down(certain=oom_kills is not None)
    verdict = _told(exit, lines, was_ready)
    if verdict.cause is Cause.KILLED_FOR_MEMORY and oom_kills is not None:
        return _struck_down(certain=True)
    return verdict


def _told(exit: Exit, lines: Sequence[str], was_ready: bool) -> Verdict:
    """What the lines tell."""
    messages = _evidence(lines)
    context = _context(lines) | {"error": _last_error(messages)[0]}
    if not was_ready:
        return _find(SIGNS, messages, context) or _unknown(exit, messages)
    if _told_to_stop(lines):
        return Verdict(Cause.KILLED, "the engine stopped on a SIGTERM or SIGINT that vllmd had not sent", WHO_KILLED)
    return _died_serving(exit, messages, context)


def _struck_down(*, certain: bool) -> Verdict:
    """SIGKILL: the kernel's way to free memory, or somebody's; its count of such kills tells which."""
    if certain:
        return Verdict(Cause.KILLED, SOMEBODY_KILLED, WHO_KILLED)
    return Verdict(Cause.KILLED_FOR_MEMORY, KILLED_FOR_MEMORY.message, KILLED_FOR_MEMORY.hint)


def _evidence(lines: Sequence[str]) -> list[str]:
    """The messages that are errors, or of no level at all (tracebacks, other programs); the latest first."""
    split_lines = (split(line[:EVIDENCE_CHARACTERS]) for line in reversed(lines))
    messages = [message for level, message in split_lines if level in ("", "ERROR", "CRITICAL") and message.strip()]
    return _joined(messages) + messages


def _joined(messages: Sequence[str]) -> list[str]:
    """What pydantic says in several lines (`1 validation error for X`, the field, what is wrong with it), as one."""
    heads = (number for number, message in enumerate(messages) if _PYDANTIC.search(message))
    return [" ".join(reversed(messages[max(0, number - 2) : number + 1])) for number in heads]


def _context(lines: Sequence[str]) -> dict[str, str]:
    """A word for each of the `CONTEXT`, whatever the level of the line that has it."""
    return {name: _first_group(pattern, lines) or otherwise for name, (pattern, otherwise) in CONTEXT.items()}


def _first_group(pattern: str, lines: Sequence[str]) -> str:
    found = (re.search(pattern, line[:EVIDENCE_CHARACTERS]) for line in lines)
    return next((match[1] for match in found if match), "")


def _find(signs: Iterable[Sign], messages: Sequence[str], context: Mapping[str, str]) -> Verdict | None:
    """What the first sign says that any of the messages bears."""
    found = (sign.read(message, context) for sign in signs for message in messages)
    return next(filter(None, found), None)


def _told_to_stop(lines: Sequence[str]) -> bool:
    """Whether its leader got SIGTERM or SIGINT before anything else went wrong (vllm/entrypoints/launcher.py)."""
    ends = (found[1] for line in lines if (found := _END.search(line[:EVIDENCE_CHARACTERS])))
    return next(ends, "").endswith("triggered")


def _died_serving(exit: Exit, messages: Sequence[str], context: Mapping[str, str]) -> Verdict:
    """It worked before, so that trying again may help, whatever the cause."""
    known = _find((sign for sign in SIGNS if sign.cause in STRIKES_LATE), messages, context)
    if known and known.cause is Cause.KILLED_FOR_MEMORY:
        return known
    if known:
        return Verdict(Cause.DIED_SERVING, f"the engine died while serving: {known.message}", known.hint)
    if exit.signal is not None:
        return _killed(exit.signal)
    error, hint = _last_error(messages)
    return Verdict(Cause.DIED_SERVING, f"the engine died while serving, with exit status {exit.status}{error}", hint)


def _unknown(exit: Exit, messages: Sequence[str]) -> Verdict:
    """No sign that is known: the name of the signal, or the exit status with the last that was said."""
    if exit.signal is not None:
        return _killed(exit.signal)
    error, hint = _last_error(messages)
    unasked = "" if exit.status else ", which nobody had asked for"
    said = error or _last_words(messages)
    return Verdict(Cause.UNKNOWN, f"the engine exited with status {exit.status}{unasked}{said}", hint)


def _killed(number: int) -> Verdict:
    name, hint = SIGNALS.get(number, (f"signal {number}", _READ_LOG))
    return Verdict(Cause.KILLED, f"the engine was killed by {name}", hint)


def _last_error(messages: Sequence[str]) -> tuple[str, str]:
    """The last exception that is not about another one, else that, as `: text` or nothing; and a hint."""
    errors = [found[1] or found[2] for message in messages if (found := _ERROR.match(message))]
    causes = [error for error in errors if not _WRAPPER.search(error)]
    if errors and not causes:
        lost = [error for error in errors if re.match(_LOST, error)]
        return _said(lost or errors) + ", and the error that caused it is not in the log", _SEARCH_LOG
    return _said(causes), _READ_LOG if causes else _SEARCH_LOG


def _last_words(messages: Sequence[str]) -> str:
    """The last line that is neither a piece of source code nor a progress bar, as `: text` or nothing."""
    return _said([message for message in messages if not _NO_WORDS.match(message)])


def _said(texts: Sequence[str]) -> str:
    text = _ELSEWHERE.sub("", texts[0]).strip().rstrip(".") if texts else ""
    return f": {text[:MESSAGE_CHARACTERS]}" if text else ""
