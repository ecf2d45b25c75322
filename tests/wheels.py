"""Wheels of fake distributions of vLLM, in a directory that only pip's own settings lead to, for tests."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import fake_vllm

TESTS = Path(fake_vllm.__file__).parent

ENGINE = """\
import importlib.metadata, os, sys

def main():
    if "--version" in sys.argv:
        {before}
        print(importlib.metadata.version("vllm"))
        return 0
    for name, value in {knobs!r}.items():
        os.environ.setdefault("FAKE_" + name.upper(), str(value))
    sys.path.insert(0, {tests!r})
    import fake_vllm
    return fake_vllm.main(sys.argv[1:])
"""
"""The fake engine as a distribution: its own behaviour by knobs, which the control file is stronger than."""


def engine(knobs: Mapping[str, object] | None = None, before: str = "pass") -> str:
    """The module of a distribution whose `vllm` is the fake engine.

    Args:
        knobs: how it behaves.
        before: what it does before it tells its version, a Python statement.
    """
    return ENGINE.format(knobs=dict(knobs or {}), tests=str(TESTS), before=before)


def write_wheel(folder: Path, name: str, version: str, main: str, needs: str = "") -> None:
    """A wheel with one module and the command `vllm`, as small as uv and pip will take it."""
    info = f"{name}-{version}.dist-info"
    files = {
        "fake_vllm_main.py": main,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nvllm = fake_vllm_main:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


def settings(folder: Path) -> dict[str, str]:
    """The environment variables by which an administrator points pip, and so vllmd, at a directory of wheels alone."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "UV_CACHE_DIR": str(folder / "cache")}
