"""The unit files as text: what they say fits what the daemon does."""

from pathlib import Path

from vllmd.config import load
from vllmd.server.draining import CUT_SHORT_S
from vllmd.server.entrance import NEWCOMER_S, SHUTDOWN_S

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
SERVICES = (UNITS / "vllmd.service", UNITS / "user/vllmd.service")


def values(path: Path, name: str) -> list[str]:
    """What stands behind `name=` in a unit file."""
    return [line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith(f"{name}=")]


def seconds(path: Path, name: str) -> int:
    """The last of those values, which must be in seconds."""
    value = values(path, name)[-1]
    assert value.endswith("s"), value
    return int(value.removesuffix("s"))


def test_the_stop_timeout_covers_drain_and_engine_of_the_shipped_configuration() -> None:
    config = load(ROOT / "etc/vllmd/vllmd.toml")
    needed_s = NEWCOMER_S + config.relay.drain_s + CUT_SHORT_S + config.supervision.stop_timeout_s + SHUTDOWN_S
    for service in SERVICES:
        assert seconds(service, "TimeoutStopSec") >= 1.5 * needed_s


def test_the_socket_listens_where_the_shipped_configuration_says() -> None:
    config = load(ROOT / "etc/vllmd/vllmd.toml")
    assert values(UNITS / "vllmd.socket", "ListenStream") == ["/run/vllmd/vllmd.sock", config.listen.tcp]


def test_no_number_of_starts_closes_the_socket() -> None:
    for service in SERVICES:
        assert values(service, "StartLimitIntervalSec") == ["0"]
        assert values(service, "StartLimitBurst") == []


def test_each_option_that_is_relaxed_has_its_reason() -> None:
    text = (UNITS / "vllmd.service").read_text()
    relaxed = [
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "DevicePolicy",
        "DeviceAllow",
        "PrivateTmp",
        "ProtectClock",
        "PrivateUsers",
        "PrivateNetwork",
        "IPAddressDeny",
        "ProcSubset",
        "ProtectControlGroups",
        "RemoveIPC",
        "DynamicUser",
    ]
    for option in relaxed:
        assert not values(UNITS / "vllmd.service", option)
        assert f"#   {option}" in text or f", {option}" in text


def test_the_user_s_service_differs_only_where_it_must() -> None:
    theirs, ours = (set(path.read_text().splitlines()) for path in SERVICES)
    different = {line.partition("=")[0] for line in ours - theirs if line and not line.startswith(("#", "["))}
    assert different <= {"ExecStart", "ExecReload", "After", "WantedBy", "Environment"}
