"""An engine that prints what it should not, and dies: its secrets, and what a terminal or a reader of logs would act
upon."""

import os
import sys

INJECTED = "INFO tiny: starting → ready"
LINES = (
    f"my token is {os.environ.get('HF_TOKEN', '')}, and the key {os.environ.get('SOME_API_KEY', '')}",
    "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnorw\u2028next",
    f"a\r{INJECTED}\x0b\x0c\x85{INJECTED}",
    "ValueError: the model is broken",
)

if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print("\n".join(LINES), flush=True)
    sys.exit(1)
