"""A package index on a loopback address, in a thread: it has a directory's wheels, or fails as it is told to.

with loopback_index(folder) as index:
    settings = index.settings               # the variables by which uv asks it and nobody else, and once
    index.trouble = "503"                   # or: "404", "429" …; "cut": half of a wheel; "": none
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class LoopbackIndex:
    """The index.

    Attributes:
        trouble: what goes wrong from now on.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.trouble = ""
        self._folder = folder
        self._port = port

    @property
    def settings(self) -> dict[str, str]:
        return {
            "UV_DEFAULT_INDEX": f"http://127.0.0.1:{self._port}/simple",
            "UV_HTTP_RETRIES": "0",
            "UV_NO_CACHE": "1",
            "NO_PROXY": "127.0.0.1",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "",
            "PIP_FIND_LINKS": "",
        }

    def answer(self, path: str) -> tuple[int, bytes, int]:
        """Status, content, and how long the content is said to be."""
        if self.trouble.isdigit():
            return int(self.trouble), b"", 0
        file = self._folder / path.rpartition("/")[2]
        if file.suffix == ".whl" and file.exists():
            content = file.read_bytes()
            sent = content[: len(content) // 2] if self.trouble == "cut" else content
            return 200, sent, len(content)
        if match := re.fullmatch(r"/simple/([\w-]+)/", path):
            names = sorted(each.name for each in self._folder.glob(f"{match[1].replace('-', '_')}-*.whl"))
            page = "".join(f'<a href="/files/{name}">{name}</a>' for name in names).encode()
            return (200, page, len(page)) if names else (404, b"", 0)
        return 404, b"", 0


@contextmanager
def loopback_index(folder: Path) -> Iterator[LoopbackIndex]:
    """An index of the wheels in a directory."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content, length = index.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
            self.end_headers()
            self.wfile.write(content if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    index = LoopbackIndex(folder, server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
