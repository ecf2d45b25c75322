"""What the GPU's driver says (NVML), where there is one.

A driver can fail in many ways and can block for long, so every question is asked in a thread, and every failure is an
answer: none, or a sentence.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

BACK_WITHIN_S = 30.0
PAUSE_S = 0.2


@dataclass(frozen=True)
class Card:
    """One GPU.

    Args:
        uuid: the driver's name for it, such as `GPU-8f2e…`.
        total, free: bytes of its memory.
    """

    uuid: str
    total: int
    free: int


async def cards() -> tuple[Card, ...]:
    """Every GPU, in the order of their PCI addresses; none where there is no way to ask."""
    return await asyncio.to_thread(_cards)


async def facts() -> tuple[str, ...]:
    """Memory and load of each GPU, a line for each; nothing where there is no way to ask."""
    return await asyncio.to_thread(_facts)


async def memory_is_back(pids: set[int]) -> None:
    """Waits until the driver counts no memory for these dead processes any more; the next engine may need it.

    Returns at once where nobody can be asked, and after `BACK_WITHIN_S` seconds with a line in the log.
    """
    deadline = asyncio.get_running_loop().time() + BACK_WITHIN_S
    while held := await asyncio.to_thread(_memory_of, pids):
        if asyncio.get_running_loop().time() > deadline:
            log.warning("the GPU's driver still counts %d MiB for an engine that has ended", held >> 20)
            return
        await asyncio.sleep(PAUSE_S)


def _cards() -> tuple[Card, ...]:
    nvml = _nvml()
    if nvml is None:
        return ()
    try:
        return read_cards(nvml)
    except Exception as error:  # as in `_facts`
        log.warning("the GPU's driver does not say how much memory there is: %s", error)
        return ()


def read_cards(nvml: Any) -> tuple[Card, ...]:
    """Every GPU, as the module pynvml, once it is ready for use, tells of them."""
    return tuple(_card(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))


def _card(nvml: Any, number: int) -> Card:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    memory, uuid = nvml.nvmlDeviceGetMemoryInfo(gpu), nvml.nvmlDeviceGetUUID(gpu)
    return Card(uuid.decode() if isinstance(uuid, bytes) else str(uuid), int(memory.total), int(memory.free))


def _facts() -> tuple[str, ...]:
    nvml = _nvml()
    if nvml is None:
        return ()
    try:
        return tuple(_describe(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))
    except Exception as error:  # NVML's errors have no common name without the package
        return (f"the driver does not answer: {error}",)


def _describe(nvml: Any, number: int) -> str:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    memory, load = nvml.nvmlDeviceGetMemoryInfo(gpu), nvml.nvmlDeviceGetUtilizationRates(gpu)
    return f"GPU {number}: {memory.used >> 20} of {memory.total >> 20} MiB used, {load.gpu} % busy"


def _memory_of(pids: set[int]) -> int:
    """Bytes of GPU memory that the driver counts for those processes."""
    nvml = _nvml() if pids else None
    if nvml is None:
        return 0
    try:
        gpus = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        holders = [each for gpu in gpus for each in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
        return sum(each.usedGpuMemory or 0 for each in holders if each.pid in pids)
    except Exception as error:
        log.warning("the GPU's driver does not say whether its memory is free: %s", error)
        return 0


def _nvml() -> Any:
    """The module pynvml, ready for use; None without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # the library or the driver is missing: each has an exception of its own
        return None
    return pynvml
