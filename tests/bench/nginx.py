"""A yardstick: nginx. Found on this machine, else fetched as Debian's package and unpacked, not installed: an
installation would start a server on port 80."""

import os
import shutil
import subprocess
from pathlib import Path

from bench.machine import BUILT

UNPACKED = BUILT / "nginx"
PACKAGES = ("nginx", "nginx-light", "nginx-core")
"""Where distributions keep the program: in the first one since Debian 12, before that in the others."""


def find() -> Path | None:
    """The program; None, and a loud line, where there is none to be had."""
    for known in (shutil.which("nginx"), "/usr/sbin/nginx", UNPACKED / "usr/sbin/nginx"):
        if known and _works(Path(known)):
            return Path(known)
    print("fetching nginx (unpacked below build/bench, not installed)", flush=True)
    if any(_fetch(package) for package in PACKAGES) or (_update() and any(_fetch(package) for package in PACKAGES)):
        return UNPACKED / "usr/sbin/nginx"
    print("!!! NO NGINX: its rows, and every target that needs them, are left out.  apt-get install nginx-light")
    return None


def _works(program: Path) -> bool:
    return program.exists() and _ran(program, "-v")


def _ran(*argv: str | Path, cwd: Path | None = None) -> bool:
    try:
        return subprocess.run(argv, cwd=cwd, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _update() -> bool:
    return os.geteuid() == 0 and _ran("apt-get", "update")


def _fetch(package: str) -> bool:
    UNPACKED.mkdir(parents=True, exist_ok=True)
    for old in UNPACKED.glob("*.deb"):
        old.unlink()
    if not _ran("apt-get", "download", package, cwd=UNPACKED):
        return False
    (archive,) = UNPACKED.glob("*.deb")
    return _ran("dpkg-deb", "-x", archive, UNPACKED) and _works(UNPACKED / "usr/sbin/nginx")


def command(program: Path, prefix: Path, port: int, engine: Path) -> list[str | Path]:
    """Writes a configuration below `prefix`; returns the command line that serves it."""
    user = "user root;" if os.geteuid() == 0 else ""  # its worker must get at the engine's socket
    (prefix / "nginx.conf").write_text(CONFIG % {"prefix": prefix, "port": port, "engine": engine, "user": user})
    return [program, "-p", prefix, "-c", prefix / "nginx.conf", "-e", prefix / "nginx-error.log"]


CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid %(prefix)s/nginx.pid;
error_log %(prefix)s/nginx-error.log;
%(user)s
events { worker_connections 8192; }
http {
    access_log off;
    client_body_temp_path %(prefix)s/body;
    proxy_temp_path %(prefix)s/proxy;
    fastcgi_temp_path %(prefix)s/fastcgi;
    uwsgi_temp_path %(prefix)s/uwsgi;
    scgi_temp_path %(prefix)s/scgi;
    keepalive_requests 1000000;
    upstream engine {
        server unix:%(engine)s;
        keepalive 4096;
        keepalive_requests 1000000;
    }
    server {
        listen 127.0.0.1:%(port)d backlog=4096;
        location / {
            proxy_pass http://engine;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 1h;
        }
    }
}
"""
