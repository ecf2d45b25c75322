"""Fuzzing for as long as one likes: `make fuzz SECONDS=600`. It ends with a table of what was tried, or at a find.

python tests/fuzz --seconds 600 [--seed 7] [--only routes,parsers,upstream]
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # so that `fuzz` is this package, wherever this was started from

from daemons import Daemon, running  # noqa: E402 (only now is it found)

from fuzz import parsers, routes, upstream  # noqa: E402
from fuzz.tally import HEADING, Tally, Until  # noqa: E402
from vllmd import keys  # noqa: E402
from vllmd.keys import Scope  # noqa: E402

DONE = re.compile(r"Done (\d+) runs")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts one after the other, each for its share of the time; returns the exit status."""
    options = _parser().parse_args(argv)
    parts = options.only.split(",")
    share_s, tallies = options.seconds / len(parts), list[Tally]()
    for part in parts:
        print(f"{part}: {share_s:.0f} s, seed {options.seed}", flush=True)
        tallies += PARTS[part](share_s, options.seed)
    print(HEADING, *(tally.row() for tally in tallies), sep="\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600, help="in all; each part has at least one round")
    parser.add_argument("--seed", type=int, default=0, help="the same one makes the same inputs")
    parser.add_argument("--only", default=",".join(PARTS), help="%(default)s")
    return parser


def _routes(seconds: float, seed: int) -> list[Tally]:
    """Every route, over TCP, with a key that may administer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        key, text = keys.new("fuzz", Scope.ADMIN)
        keys.change(file, lambda old: (*old, key))
        with running(Daemon(access={"keys": str(file)}, environ={"PIP_NO_INDEX": "1"})) as daemon:
            return routes.fuzz(daemon, {"authorization": f"Bearer {text}"}, Until(seconds), seed)


def _parsers(seconds: float, seed: int) -> list[Tally]:
    return parsers.fuzz(Until(seconds), seed)


def _upstream(seconds: float, seed: int) -> list[Tally]:
    """What an engine sends, by atheris: a process for each target, as libFuzzer ends the one that it runs in."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("!!! NO ATHERIS: an engine's HTTP and events are fed by hypothesis alone.  pip install atheris==3.0.0")
        return []
    return [_libfuzzer(name, seconds / len(upstream.CHECKS), seed) for name in upstream.CHECKS]


def _libfuzzer(name: str, seconds: float, seed: int) -> Tally:
    limits = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed or 1}", "-max_len=4096"]
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            str(Path(__file__).with_name("libfuzzer.py")),
            name,
            *limits,
            f"-artifact_prefix={folder}/",
        ]
        ran = subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False)
    done = DONE.search(ran.stderr)
    if ran.returncode or not done:
        raise SystemExit(f"{name}: atheris has found something\n{ran.stderr[-5000:]}")
    return Tally(f"an engine's {name.upper()}", "atheris", int(done[1]))


PARTS: dict[str, Callable[[float, int], list[Tally]]] = {
    "routes": _routes,
    "parsers": _parsers,
    "upstream": _upstream,
}

if __name__ == "__main__":
    sys.exit(main())
