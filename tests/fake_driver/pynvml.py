"""NVML, as far as vllmd asks it, for the cards of the folder that FAKE_GPUS names; see virtual_gpus.py."""

import os
from pathlib import Path
from types import SimpleNamespace

import virtual_gpus

NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0


def _folder() -> Path:
    return Path(os.environ["FAKE_GPUS"])


def nvmlInit() -> None:
    """Without the variable, or without cards, there is no driver: then this fails."""
    virtual_gpus.cards(_folder())


def nvmlSystemGetDriverVersion() -> str:
    return "0.0-virtual"


def nvmlDeviceGetCount() -> int:
    return len(virtual_gpus.cards(_folder()))


def nvmlDeviceGetHandleByIndex(number: int) -> int:
    return number


def nvmlDeviceGetUUID(gpu: int) -> str:
    return virtual_gpus.cards(_folder())[gpu].uuid


def nvmlDeviceGetName(gpu: int) -> str:
    return "Virtual GPU"


def nvmlDeviceGetMemoryInfo(gpu: int) -> SimpleNamespace:
    total, free = virtual_gpus.cards(_folder())[gpu].total, virtual_gpus.free(_folder(), gpu)
    return SimpleNamespace(total=total, free=free, used=total - free)


def nvmlDeviceGetUtilizationRates(gpu: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=0, memory=0)


def nvmlDeviceGetTemperature(gpu: int, sensor: int) -> int:
    return 40


def nvmlDeviceGetTotalEccErrors(gpu: int, kind: int, counter: int) -> int:
    return 0


def nvmlDeviceGetComputeRunningProcesses(gpu: int) -> list[SimpleNamespace]:
    holders = (each for each in virtual_gpus.held(_folder()) if each.card == gpu)
    return [SimpleNamespace(pid=each.pid, usedGpuMemory=each.bytes) for each in holders]
