"""The page as it goes over the wire: who gets it, under which policy, and what it consists of."""

import hashlib
import re
from pathlib import Path

import pytest
from conftest import Start
from daemons import Daemon

from vllmd import keys, wire
from vllmd.keys import Scope
from vllmd.server.assets import FOLDER, INDEX, read

LOOPS = ("uvloop",)

LARGEST_LINES = 260


async def test_page_and_files_come_with_a_policy_of_their_own(daemon: Daemon) -> None:
    for door in (daemon.tcp, daemon.unix):
        for path, kind in (("/", "html"), ("/page/main.js", "javascript"), ("/page/style.css", "css")):
            answer = await door.ask(path)
            assert (answer.status, kind in answer.header("content-type")) == (200, True), path
            policy = answer.header("content-security-policy")
            assert policy.startswith("default-src 'none'; script-src 'self'; ")
            assert "unsafe" not in policy
            assert "*" not in policy
            assert "data:" not in policy
            assert answer.header("x-content-type-options") == "nosniff"
            assert answer.header("x-frame-options") == "DENY"
            assert answer.header("referrer-policy") == "no-referrer"


async def test_what_a_browser_has_is_not_sent_again(daemon: Daemon) -> None:
    first = await daemon.tcp.ask("/page/main.js")
    tag = first.header("etag")
    assert re.fullmatch('"[0-9a-f]{20}"', tag)
    for known, status in ((tag, 304), (f'"other", W/{tag}', 304), ("*", 304), ('"other"', 200)):
        answer = await (await daemon.tcp.open("/page/main.js", headers={"if-none-match": known})).head()
        assert answer.status == status, known
        assert answer.header("etag") == tag
        assert answer.header("cache-control") == "no-cache"
        await answer.leave()


@pytest.mark.parametrize(
    "path",
    [
        "nothing.js",
        "../assets.py",
        "%2e%2e/assets.py",
        "..%2fassets.py",
        "vendor/README.md",
        "vendor/marked/LICENSE",
        "/etc/passwd",
    ],
)
async def test_nothing_else_is_served(daemon: Daemon, path: str) -> None:
    answer = await daemon.tcp.ask(f"/page/{path}")
    assert (answer.status, answer.error["code"]) == (404, "route_not_found"), path


async def test_the_page_needs_no_key_and_everything_else_does(start: Start, tmp_path: Path) -> None:
    key, _ = keys.new("somebody", Scope.INFERENCE)
    keys.change(tmp_path / "keys", lambda old: (*old, key))
    daemon = start(access={"keys": str(tmp_path / "keys")})
    for path in ("/", "/page/main.js"):
        assert (await daemon.tcp.ask(path)).status == 200
    assert (await daemon.tcp.ask("/page/nothing")).status == 404
    for path in (
        "/api/status",
        "/page",
        "/page/",
        "//",
        "/page/../api/status",
        "/%2e/api/status",
        "/page/%2e%2e/api/status",
    ):
        assert (await daemon.tcp.ask(path)).status in (401, 404), path
    assert (await daemon.tcp.ask("/api/status")).status == 401


async def test_it_can_be_turned_off(start: Start) -> None:
    daemon = start(page={"enabled": False}, ready=False)
    for path in ("/", "/page/main.js"):
        answer = await daemon.tcp.ask(path)
        assert (answer.status, answer.error["code"]) == (404, "route_not_found")
        assert "page.enabled" in answer.error["hint"]


# ── what it consists of ──


def test_the_libraries_are_as_their_packages_have_them() -> None:
    told = dict(
        re.findall(r"^\| `(\S+)` .* `([0-9a-f]{64})` \|$", (FOLDER / "vendor/README.md").read_text(), re.MULTILINE)
    )
    found = {str(each.relative_to(FOLDER / "vendor")): each for each in (FOLDER / "vendor").rglob("*js")}
    assert set(told) == set(found)
    for name, file in found.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == told[name], name
        assert (file.parent / "LICENSE").read_text().strip()


def test_all_that_the_page_names_is_there_and_nothing_of_elsewhere() -> None:
    files = dict(read(FOLDER))
    for name, asset in files.items():
        text = asset.body.decode()
        own = not name.startswith("vendor/")
        for path in re.findall(r'(?:src|href)="(/[^"#]+)"', text if own else ""):
            assert path.removeprefix("/page/") in files, f"{name}: {path}"
        for path in re.findall(r'(?:from|import\() ?"(\.[^"]+)"', text if own else ""):
            assert (FOLDER / name).parent.joinpath(path).resolve().is_relative_to(FOLDER)
            assert (FOLDER / name).parent.joinpath(path).exists(), f"{name}: {path}"
        assert not own or not re.search(r"https?://(?!www\.w3\.org/)\w", text), name
    assert not re.search(r"""\son\w+=|style=|<script>|<style""", files[INDEX].body.decode()), "inline"


def test_no_script_of_our_own_reads_text_as_html() -> None:
    for file in FOLDER.rglob("*.js"):
        if "vendor" not in file.parts:
            text = file.read_text()
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), file
            assert text.count("\n") <= LARGEST_LINES, file


def test_the_knobs_have_the_ranges_of_the_api() -> None:
    page = (FOLDER / INDEX).read_text()
    known = wire.PromptRequest.__dataclass_fields__
    for name in ("temperature", "top_p", "max_tokens", "seed"):
        (field,) = re.findall(rf'<input id="{name}"[^>]*>', page)
        bounds = {side: re.search(rf' {side}="([^"]+)"', field) for side in ("min", "max")}
        low, high = (float(found[1]) if found else None for found in bounds.values())
        minimum, maximum = known[name].metadata["minimum"], known[name].metadata["maximum"]
        assert high == maximum, name
        # What vLLM says of top_p is "in (0, 1]": the page does not offer what is refused.
        assert low == (0.01 if name == "top_p" else minimum), name
