"""An engine that passes its health check, tells no metrics, and answers everything else with the bytes of a file,
whatever they are.

`ODD_ANSWER` names the file. After its bytes the connection is closed; if the file ends in `HOLD`, it is held instead.
"""

import os
import socketserver
import sys
import time
from pathlib import Path

TOKEN = b'{"usage":{"completion_tokens":1}}'
HOLD = b"HOLD"


class Odd(socketserver.StreamRequestHandler):
    """One connection, one request."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        lengths = [line[15:] for line in head.lower().splitlines() if line.startswith(b"content-length:")]
        if b'"prompt": "1"' in self.rfile.read(int(*lengths)):
            self.wfile.write(
                b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(TOKEN), TOKEN)
            )
            return
        if head.startswith(b"GET /metrics "):  # by which a status is told of its load, at any time
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            return
        answer = Path(os.environ["ODD_ANSWER"]).read_bytes()
        self.wfile.write(answer.removesuffix(HOLD))
        if answer.endswith(HOLD):
            time.sleep(60)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    with Server(sys.argv[sys.argv.index("--uds") + 1], Odd) as server:
        server.serve_forever()
