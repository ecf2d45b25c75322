"""Addresses: every form that people write, and what is none."""

import pytest

from vllmd.address import (
    UNIX_PATH_MAX_BYTES,
    TcpAddress,
    UnixAddress,
    check_unix_path,
    default_socket,
    parse,
    runtime_directory,
)
from vllmd.errors import AddressError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:///run/vllmd/vllmd.sock", UnixAddress("/run/vllmd/vllmd.sock")),
        ("unix:/run/vllmd.sock", UnixAddress("/run/vllmd.sock")),
        ("/tmp/a b.sock", UnixAddress("/tmp/a b.sock")),
        ("http://gpu1:8000", TcpAddress("gpu1", 8000)),
        ("http://gpu1:8000/", TcpAddress("gpu1", 8000)),
        ("http://gpu1", TcpAddress("gpu1", 80)),
        ("https://gpu1", TcpAddress("gpu1", 443, tls=True)),
        ("https://gpu1.example:8443", TcpAddress("gpu1.example", 8443, tls=True)),
        ("tcp://gpu1:8000", TcpAddress("gpu1", 8000)),
        ("gpu1:8000", TcpAddress("gpu1", 8000)),
        ("0.0.0.0:1", TcpAddress("0.0.0.0", 1)),
        ("127.0.0.1:65535", TcpAddress("127.0.0.1", 65535)),
        ("[::1]:8000", TcpAddress("::1", 8000)),
        ("http://[fe80::1]:80", TcpAddress("fe80::1", 80)),
        ("http://[fe80::1%eth0]:80", TcpAddress("fe80::1%eth0", 80)),
    ],
)
def test_what_people_write(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gpu1",
        "tcp://gpu1",
        ":8000",
        "gpu1:",
        "gpu1:http",
        "gpu1:8000/v1",
        "http://",
        "http://gpu1:8000/v1",
        "http://user@gpu1:8000",
        "ftp://gpu1:21",
        "://gpu1:21",
        "gpu1:0",
        "gpu1:65536",
        "gpu1:8000:9000",
        "::1:8000",
        "[::1]",
        "[::1:8000",
        "g pu1:8000",
        "gpu1:8000\n",
        "gpu1:٨٠",
        "unix:relative.sock",
        "unix://relative.sock",
        "unix:",
        "relative/path.sock",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError, match="is not an address") as caught:
        parse(text)
    assert "unix:///path" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["unix:///run/vllmd.sock", "http://gpu1:8000", "https://gpu1:443", "http://[::1]:8000", "http://[::1%lo]:1"]
)
def test_what_is_printed_can_be_read_again(text: str) -> None:
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_the_authority_is_what_a_host_header_takes() -> None:
    assert TcpAddress("gpu1", 80).authority == "gpu1:80"
    assert TcpAddress("::1", 80).authority == "[::1]:80"


def test_the_kernel_s_limit_on_paths_is_in_bytes() -> None:
    check_unix_path("/" + "x" * (UNIX_PATH_MAX_BYTES - 1))
    with pytest.raises(AddressError, match="too long: 108 bytes, Linux takes 107"):
        check_unix_path("/" + "x" * UNIX_PATH_MAX_BYTES)
    with pytest.raises(AddressError, match="too long: 121 bytes"):
        parse("unix:///" + "é" * 60)


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback(host: str) -> None:
    assert TcpAddress(host, 80).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "128.0.0.1", "127.0.0.1.nip.io"])
def test_not_loopback(host: str) -> None:
    assert not TcpAddress(host, 80).is_loopback


@pytest.mark.parametrize(
    ("environ", "uid", "directory"),
    [
        ({}, 0, "/run/vllmd"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/vllmd"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/vllmd"),
        ({"XDG_RUNTIME_DIR": ""}, 7, "/tmp/vllmd-7"),
        ({}, 7, "/tmp/vllmd-7"),
    ],
)
def test_where_the_socket_is_by_default(environ: dict[str, str], uid: int, directory: str) -> None:
    assert runtime_directory(environ, uid) == directory
    assert default_socket(environ, uid) == UnixAddress(f"{directory}/vllmd.sock")
