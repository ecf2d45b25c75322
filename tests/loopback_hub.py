"""A model hub on a loopback address, in a thread: the few routes that huggingface_hub asks, with faults on order.

A file's bytes come from a second port, as from the hub's store: the hub itself answers with a redirect to it, signed in
its own way, and the token must not follow there.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

PIECE = 16 * 1024
LFS = ("safetensors", "bin", "pth", "gguf")
"""Endings of the files that the hub keeps apart from git."""


@dataclass
class Faults:
    """What goes wrong from now on. All of it may be changed at any time.

    Args:
        status: (path's ending → HTTP status, headers) instead of an answer, so many times.
        cut: the store's answers end after so many bytes, so many times.
        pace_s: seconds between the pieces of the store's answers.
        spoil: the store's answers have a wrong byte in it, so many times.
        ignore_range: the store always begins at the beginning.
        short: the store has less than the hub says, of every file.
    """

    status: dict[str, tuple[int, dict[str, str], int]] = field(default_factory=dict)
    cut: tuple[int, int] = (0, 0)
    pace_s: float = 0.0
    spoil: int = 0
    ignore_range: bool = False
    short: bool = False


class LoopbackHub:
    """The hub.

    Attributes:
        repos: name → commit → path → content.
        heads: name → revision → commit.
        sent: digest → bytes that were sent of it, also those that nobody read any more.
        begun: digest → where the store was asked to begin, in order.
        asked: (port's name, method, path, Authorization), in order.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.sizes: dict[str, int] = {}
        self.gated: set[str] = set()
        self.token = ""
        self.faults = Faults()
        self._etags: dict[tuple[bool, int], str] = {}
        self.sent: dict[str, int] = {}
        self.begun: dict[str, list[int]] = {}
        self.asked: list[tuple[str, str, str, str]] = []
        self.may_end = threading.Event()
        self.lock = threading.Lock()
        self.hub = _Server(self, _Hub)
        self.store = _Server(self, _Store)

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.hub.server_port}"

    def etag(self, path: str, content: bytes) -> str:
        """`etag_of`, reckoned once for each content."""
        key = (path.endswith(LFS), id(content))
        if key not in self._etags:
            self._etags[key] = etag_of(path, content)
        return self._etags[key]

    def put(self, repo: str, files: Mapping[str, bytes], revision: str = "main") -> str:
        """A new commit on a branch; returns it."""
        commit = hashlib.sha1(json.dumps([repo, revision, time.time()], default=str).encode()).hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.heads.setdefault(repo, {})[revision] = commit
        return commit

    def sent_of(self, content: bytes) -> int:
        """How many bytes were sent of this content."""
        return self.sent.get(etag_of("x.safetensors", content), 0) + self.sent.get(etag_of("x.json", content), 0)

    @property
    def sent_bytes(self) -> int:
        """All bytes of all files that were sent."""
        return sum(self.sent.values())

    def fault_for(self, path: str) -> tuple[int, dict[str, str]] | None:
        """Takes a fault from the list, if there is one for `path`."""
        with self.lock:
            for ending, (status, headers, left) in list(self.faults.status.items()):
                if path.endswith(ending) and left:
                    self.faults.status[ending] = (status, headers, left - 1)
                    return status, headers
        return None


@contextmanager
def serving() -> Iterator[LoopbackHub]:
    """A hub, for as long as the block lasts."""
    hub = LoopbackHub()
    servers = (hub.hub, hub.store)
    threads = [threading.Thread(target=each.serve_forever, args=(0.05,), daemon=True) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.may_end.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def etag_of(path: str, content: bytes) -> str:
    """The hub's digest of a file."""
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, world: LoopbackHub, handler: "type[_Handler]") -> None:
        self.world = world
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    server: _Server

    @property
    def world(self) -> LoopbackHub:
        return self.server.world

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.world.asked.append((self.name, self.command, path, self.headers.get("Authorization", "")))
        if fault := self.world.fault_for(path):
            self.answer(fault[0], fault[1])
        else:
            self.serve(path)

    do_HEAD = do_GET

    def serve(self, path: str) -> None:
        raise NotImplementedError

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Hub(_Handler):
    name = "hub"

    def serve(self, path: str) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != self.world.token:
            said = "Invalid credentials in Authorization header"
            return self.answer(401, {"X-Error-Message": said}, json.dumps({"error": said}).encode())
        if found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            return self._info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3], token)
        return self.answer(404)

    def _commit(self, repo: str, revision: str) -> str | None:
        """The commit that is meant; None, and the answer is given, if there is none."""
        if repo not in self.world.repos:
            self.answer(404 if self.headers.get("Authorization") else 401, {"X-Error-Code": "RepoNotFound"})
            return None
        commits = self.world.repos[repo]
        commit = revision if revision in commits else self.world.heads[repo].get(revision)
        if commit is None:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, repo: str, revision: str) -> None:
        if (commit := self._commit(repo, revision)) is None:
            return
        siblings = [self._sibling(path, content) for path, content in self.world.repos[repo][commit].items()]
        table = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(table).encode())

    def _sibling(self, path: str, content: bytes) -> dict[str, Any]:
        size = self.world.sizes.get(path, len(content))
        entry = {"rfilename": path, "size": size, "blobId": self.world.etag("pointer.txt", content)}
        if path.endswith(LFS):
            entry["lfs"] = {"sha256": self.world.etag(path, content), "size": size, "pointerSize": 130}
        return entry

    def _file(self, repo: str, revision: str, path: str, token: str) -> None:
        if (commit := self._commit(repo, revision)) is None:
            return None
        if repo in self.world.gated and not token:
            return self.answer(401, {"X-Error-Code": "GatedRepo"})
        content = self.world.repos[repo][commit].get(path)
        if content is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        etag = self.world.etag(path, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"'}
        headers["X-Linked-Size"] = str(len(content))
        if path.endswith(LFS):
            place = f"http://127.0.0.1:{self.world.store.server_port}/{repo}/{commit}/{path}"
            return self.answer(302, {**headers, "Location": place})
        self.world.sent[etag] = self.world.sent.get(etag, 0) + (len(content) if self.command == "GET" else 0)
        return self.answer(200, headers, content)


class _Store(_Handler):
    name = "store"

    def serve(self, path: str) -> None:
        owner, name, commit, file = path.removeprefix("/").split("/", 3)
        content, faults = self.world.repos[f"{owner}/{name}"][commit][file], self.world.faults
        etag = self.world.etag(file, content)
        if faults.short:
            content = content[: len(content) // 2]
        ranged = None if faults.ignore_range else re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(ranged[1]) if ranged else 0
        self.world.begun.setdefault(etag, []).append(begin)
        if begin >= len(content) and ranged:
            return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if ranged else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if ranged:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        return self._send(etag, self._spoilt(content)[begin:])

    def _spoilt(self, content: bytes) -> bytes:
        with self.world.lock:
            if not self.world.faults.spoil:
                return content
            self.world.faults.spoil -= 1
        return bytes([content[0] ^ 1]) + content[1:]

    def _send(self, etag: str, content: bytes) -> None:
        with self.world.lock:
            after, times = self.world.faults.cut
            is_cut = times > 0 and after < len(content)
            if is_cut:
                self.world.faults.cut = (after, times - 1)
        for at in range(0, after if is_cut else len(content), PIECE):
            piece = content[at : min(at + PIECE, after) if is_cut else at + PIECE]
            self.wfile.write(piece)
            self.wfile.flush()
            with self.world.lock:
                self.world.sent[etag] = self.world.sent.get(etag, 0) + len(piece)
            if self.world.faults.pace_s and self.world.may_end.wait(self.world.faults.pace_s):
                break
        if is_cut:
            self.close_connection = True
