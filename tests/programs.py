"""Small Python programs that tests run as if they were engines."""

import sys

PRELUDE = """
import os, signal, sys, time
say = lambda *what: print(*what, flush=True)
def daemon():
    if os.fork(): return
    os.setsid()
    if os.fork(): os._exit(0)
    for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
    say(os.getpid())
    while True: signal.pause()
"""
"""What they may use: `say` prints, and `daemon` leaves behind a process that runs away and cannot be asked to end."""

FOREVER = "\nwhile True: signal.pause()\n"


def python(code: str) -> tuple[str, ...]:
    """The command that runs `code`."""
    return (sys.executable, "-I", "-S", "-c", PRELUDE + code)
