"""The chat page: the files of `page/`, as they are, with what a browser has to know about them.

They hold nothing that is secret, so whoever reaches the door may have them: a key is asked for by the page itself, once
the service wants one. They are read when the daemon starts, so that page and daemon always have the same version.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from vllmd.errors import RouteNotFound
from vllmd.routes import PAGE
from vllmd.sections import Current

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""What is served at all; licences and notes lie beside it."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
"""Nothing from another host, nothing inline, and HTML only by way of the library that cleans it."""


@dataclass(frozen=True)
class Asset:
    """One file.

    Args:
        body: its bytes.
        type: its media type.
        tag: its ETag; another one for another content.
    """

    body: bytes
    type: str
    tag: str


def read(folder: Path) -> Iterator[tuple[str, Asset]]:
    """The files of a folder that are of a known type, by their path in it."""
    for file in sorted(folder.rglob("*")):
        if media_type := TYPES.get(file.suffix):
            body = file.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            yield file.relative_to(folder).as_posix(), Asset(body, media_type, tag)


class Assets:
    """The handlers of the page and its files.

    Args:
        current: whether there shall be a page.
        files: by their path below `/page/`; `index.html` is served at `/`.
    """

    def __init__(self, current: Current, files: Mapping[str, Asset]) -> None:
        self._current = current
        self._files = files

    async def index(self, request: web.Request) -> web.Response:
        """The chat page, for browsers."""
        return self._serve(request, INDEX)

    async def file(self, request: web.Request) -> web.Response:
        """One of the page's files: a script, a style, a picture."""
        return self._serve(request, request.match_info["file"])

    def _serve(self, request: web.Request, name: str) -> web.Response:
        if not self._current.config.page.enabled:
            raise RouteNotFound("the chat page is turned off here", "page.enabled = true in vllmd.toml turns it on")
        if (asset := self._files.get(name)) is None:
            raise RouteNotFound(f"the chat page has no {name[:80]!r}", f"the page itself is at {PAGE}")
        headers = {
            hdrs.ETAG: asset.tag,
            hdrs.CACHE_CONTROL: "no-cache",  # which is: ask whether it is still the same
            hdrs.CONTENT_SECURITY_POLICY: POLICY,
            "Cross-Origin-Opener-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        }
        if _is_known(request, asset.tag):
            return web.Response(status=304, headers=headers)
        return web.Response(body=asset.body, headers={**headers, hdrs.CONTENT_TYPE: asset.type})


def _is_known(request: web.Request, tag: str) -> bool:
    """Whether the browser has it already (RFC 9110, 13.1.2)."""
    return any(each.value == tag.strip('"') or each.value == "*" for each in request.if_none_match or ())
