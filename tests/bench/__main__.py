"""The yardstick of the relay: what it costs beside nginx, a plain aiohttp relay and the floor, in one run.

    make bench                          everything, about six minutes; or, for one question:
    python tests/bench --quick --only s64,churn --relays nginx,vllmd

An engine and clients in C, which are never the limit, on one core; each relay alone on another. All scenarios go round
the relays at least three times, and only runs count in which the clients saw single events and the host stole little.
The figure is CPU time for a million events (requests, in churn) of the relay's processes; times are not stable on
shared machines, ratios within one run are. `build/bench.json` keeps it all for comparisons.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])  # so that `bench` is this package, wherever this was started from

from bench import ctl, faults, machine, report, rounds, scenarios  # noqa: E402 (only now is it found)
from bench.relays import NAMES, Setting, Way, started  # noqa: E402
from bench.targets import targets  # noqa: E402

FAULTS = "faults"
CTL = "ctl"
"""What vllmctl costs, beside curl; no relay takes part."""

FEW_FILES = 6000


def main(argv: Sequence[str]) -> int:
    """Measures and reports; returns 1 if a relay has lost anything."""
    wanted = _parse(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the relays are ended
    if CTL in wanted.only:
        ctl.measure(ctl.VLLMCTL, *((5, 100_000) if wanted.quick else (20, 1_000_000)))
        if wanted.only == [CTL]:
            return 0
    if (files := machine.raise_limits()) < FEW_FILES:
        print(f"!!! only {files} open files are allowed: 2000 streams need {FEW_FILES}")
    cores = machine.Cores.shared_out()
    if cores.relay in (cores.engine, cores.load):
        print("!!! ONE CORE: the relays share it with engine and clients, and look cheaper than they are")
    with tempfile.TemporaryDirectory(prefix="vb", dir="/tmp") as folder:
        more = wanted.config.read_text() if wanted.config else ""
        setting = Setting(Path(folder), cores, wanted.product.resolve(), more, wanted.key)
        os.sched_setaffinity(0, {cores.engine, cores.load})
        with started(setting, lambda name: _is_wanted(name, wanted.relays)) as ways:
            return _measure(setting, ways, wanted)


def _measure(setting: Setting, ways: list[Way], wanted: argparse.Namespace) -> int:
    measured: dict[str, dict[str, rounds.Figures]] = {}
    # First of all: afterwards the relays have room to spare, and would not be seen to grow.
    found = faults.measure(setting, ways, kills=1 if wanted.quick else 3) if FAULTS in wanted.only else {}
    for scenario in scenarios.ALL:
        if scenario.name in wanted.only:
            taking_part = [way for way in ways if way.name in scenario.ways]
            measured[scenario.name] = rounds.measure(
                scenario, taking_part, wanted.seconds, wanted.rounds, setting.cores
            )
    return _report(measured, found, wanted)


def _report(
    measured: dict[str, dict[str, rounds.Figures]], found: dict[str, dict[str, object]], wanted: argparse.Namespace
) -> int:
    judged = list(targets(measured, found))
    facts: dict[str, Any] = {**machine.facts(wanted.product), "rounds": wanted.rounds, "window_s": wanted.seconds}
    print("\nadded: to the latency of the direct way, whose CPU is the engine's, and which no relay can beat")
    for each in measured.values():
        print(*report.table(each), sep="\n")
    print(*report.fault_table(found), sep="\n")
    print(*report.target_table([each for each in judged if each.figure is not None]), sep="\n")
    if wanted.against:
        print(*report.comparison(measured, wanted.against), sep="\n")
    report.write(wanted.json, facts, measured, found, judged)
    print(f"\n{facts}\nwritten: {wanted.json}")
    lost = [f"{name}: {way}" for name, ways in measured.items() for way, each in ways.items() if not each.is_whole]
    if lost:
        print(f"!!! LOST OR WRONG in {', '.join(lost)}")
    return 1 if lost else 0


def _is_wanted(name: str, relays: list[str]) -> bool:
    """`vllmd` means all ways through it."""
    return name in relays or name.partition("-")[0] in relays


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    known = [*(each.name for each in scenarios.ALL), FAULTS, CTL]
    parser.add_argument("--only", type=_names(known), default=known, help=f"some of {','.join(known)}")
    parser.add_argument("--relays", type=_names(NAMES), default=[*NAMES], help=f"some of {','.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--rounds", type=int, help="runs that must count")
    parser.add_argument("--seconds", type=float, help="how long each run is measured")
    parser.add_argument("--product", type=Path, default=machine.ROOT, help="another checkout, whose vllmd to measure")
    parser.add_argument("--config", type=Path, help="TOML to add to vllmd's configuration")
    parser.add_argument("--key", default="", help="API key that this configuration asks for")
    parser.add_argument("--json", type=Path, default=machine.ROOT / "build/bench.json", help="where figures go")
    parser.add_argument("--against", type=_read_json, help="an earlier bench.json to compare with")
    wanted = parser.parse_args(argv)
    wanted.rounds = wanted.rounds or (1 if wanted.quick else 3)
    wanted.seconds = wanted.seconds or (0.6 if wanted.quick else 1.5)
    return wanted


def _read_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from None


def _names(known: Sequence[str]) -> Any:
    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return names

    return read


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
