"""What the kernel says of memory: how much there is, and its count of kills."""

from collections.abc import Mapping
from pathlib import Path

from vllmd.engine.memory import Host, host, kills_since, oom_kills

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 << 20} kB\nMemAvailable: {10 << 20} kB\nSwapTotal: {2 << 20} kB\nSwapFree: {1 << 20} kB\n"


def host_with(folder: Path, membership: str, files: Mapping[str, str]) -> Host | None:
    """What is found where the kernel says so."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(MEMINFO)
    (folder / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return host(folder / "proc", folder / "groups")


def test_without_limits_the_whole_machine_is_there(tmp_path: Path) -> None:
    unlimited = {"memory.max": "max", "memory.current": "5", "memory.stat": "inactive_file 1"}
    assert host_with(tmp_path, "0::/", unlimited) == Host(18 * GIB, 11 * GIB)


def test_the_narrowest_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    files = {
        "system.slice/memory.max": str(8 * GIB),
        "system.slice/memory.current": str(7 * GIB),
        "system.slice/memory.stat": f"active_file {GIB}\ninactive_file {GIB}\nanon 5",
        "system.slice/vllmd.service/memory.max": "max",
    }
    assert host_with(tmp_path, "0::/system.slice/vllmd.service\n", files) == Host(10 * GIB, 4 * GIB)


def test_version_1_says_the_same_in_other_words(tmp_path: Path) -> None:
    own = {"limit_in_bytes": str(4 * GIB), "usage_in_bytes": str(GIB), "stat": "total_inactive_file 0"}
    files = {f"memory/a/memory.{name}": text for name, text in own.items()}
    files |= {f"memory/memory.{name}": text for name, text in {**own, "limit_in_bytes": str(1 << 62)}.items()}
    assert host_with(tmp_path, "4:memory:/a\n0::/\n", files) == Host(6 * GIB, 4 * GIB)


def test_where_the_kernel_does_not_say_nobody_guesses(tmp_path: Path) -> None:
    assert host(tmp_path, tmp_path) is None
    here = host()
    assert here is not None
    assert 0 < here.free <= here.total


def test_what_nobody_counted_then_is_not_known() -> None:
    assert kills_since(None) is None


def test_the_difference_is_told_and_none_where_nobody_counts_any_more() -> None:
    now = oom_kills()
    assert kills_since(0) == now
    assert kills_since(5) == (None if now is None else now - 5)
