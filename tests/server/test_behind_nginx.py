"""TLS by nginx, with the configuration that is shipped: keys and streams pass, and a client that leaves is noticed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemons import Daemon, free_port, running
from waiting import until_sync

from vllmd import keys
from vllmd.keys import Scope

SHIPPED = Path(__file__).parents[2] / "packaging" / "nginx" / "vllmd.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
OPENSSL = shutil.which("openssl")
NAME = "vllm.example"

pytestmark = pytest.mark.skipif(
    not (NGINX and OPENSSL), reason="NO NGINX OR OPENSSL HERE: TLS is not tested; apt-get install nginx-light openssl"
)


class Proxy:
    """nginx with the shipped configuration, but for its ports and paths."""

    def __init__(self, folder: Path, daemon: Daemon) -> None:
        self.folder, self.port = folder, free_port()
        subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
        pair = ["-keyout", str(folder / "key"), "-out", str(folder / "pem")]
        assert OPENSSL is not None
        argv = [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *pair]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)
        shipped = SHIPPED.read_text()
        for old, new in (
            ("127.0.0.1:8080", f"127.0.0.1:{daemon.port}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            (f"/etc/ssl/certs/{NAME}.pem", str(folder / "pem")),
            (f"/etc/ssl/private/{NAME}.key", str(folder / "key")),
        ):
            assert old in shipped
            shipped = shipped.replace(old, new)
        temporary = "".join(
            f"{each}_temp_path {folder}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = f"daemon off; pid {folder}/pid; error_log {folder}/log; worker_processes 1; events {{}}\n"
        (folder / "conf").write_text(f"{main}http {{ access_log off; {temporary}\n{shipped}}}\n")

    def start(self) -> "subprocess.Popen[bytes]":
        assert NGINX is not None
        return subprocess.Popen([NGINX, "-e", f"{self.folder}/log", "-c", f"{self.folder}/conf"])

    def curl(self, path: str, *more: str) -> list[str]:
        where = ["--cacert", f"{self.folder}/pem", "--resolve", f"{NAME}:{self.port}:127.0.0.1"]
        return ["curl", "-sSN", "-m", "60", *where, *more, f"https://{NAME}:{self.port}{path}"]

    def get(self, path: str, *more: str) -> tuple[int, str]:
        argv = self.curl(path, "-w", "\n%{http_code}", *more)
        out = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False).stdout
        body, _, status = out.rpartition("\n")
        return int(status), body


@pytest.fixture(scope="module")
def secured() -> Iterator[tuple[Daemon, Proxy, str]]:
    with tempfile.TemporaryDirectory(prefix="vn", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        key, text = keys.new("far", Scope.INFERENCE)
        keys.change(folder / "keys", lambda old: (*old, key))
        with running(Daemon(access={"keys": str(folder / "keys")}, listen={"hosts": [NAME]})) as daemon:
            proxy = Proxy(folder, daemon)
            process = proxy.start()
            try:
                until_sync(lambda: proxy.get("/health")[0] == 200, "nginx to listen")
                yield daemon, proxy, f"authorization: Bearer {text}"
            finally:
                process.terminate()
                process.wait(30)


def test_a_key_is_asked_for_and_passes(secured: tuple[Daemon, Proxy, str]) -> None:
    daemon, proxy, key = secured
    daemon.control()
    assert proxy.get("/api/status")[0] == 401
    assert proxy.get("/v1/chat/completions", "-d", '{"messages": []}')[0] == 401
    status, body = proxy.get("/api/prompt", "-H", key, "-d", '{"prompt": "x"}')
    assert (status, "event: done" in body) == (200, True)
    assert {each.who for each in daemon.status().usage} >= {"key:far"}


def test_tokens_pass_one_by_one_and_a_client_that_leaves_is_noticed(secured: tuple[Daemon, Proxy, str]) -> None:
    daemon, proxy, key = secured
    daemon.control(tokens=10_000, tokens_per_s=20)
    daemon.forget()
    argv = proxy.curl("/api/prompt", "-H", key, "-d", '{"prompt": "x"}')
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        came = b""
        while b"tok3" not in came:  # long before the last one
            came += os.read(curl.stdout.fileno(), 65536)
        curl.kill()
    until_sync(lambda: [each["how"] for each in daemon.journal("end")] == ["cancelled"], "the engine to be told")
    daemon.control()
