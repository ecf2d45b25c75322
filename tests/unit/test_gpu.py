"""What is told of GPUs, where the driver answers, and where it answers only in part or not at all."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from vllmd.engine.gpu import NO_GPUS, Gpus, asked, told_by


class Lost(Exception):
    """What NVML says of a card that has fallen off the bus."""


class Driver:
    """NVML as pynvml has it, for two cards of which the second can fail.

    Args:
        fails: the functions that raise.
    """

    NVML_TEMPERATURE_GPU = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0

    def __init__(self, *fails: str) -> None:
        self._fails = fails

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self._fails:
            raise Lost("GPU is lost")
        return super().__getattribute__(name)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"550.54"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetName(self, gpu: int) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:
        return SimpleNamespace(used=3 << 30, total=140 << 30)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:
        return SimpleNamespace(gpu=7)

    def nvmlDeviceGetTemperature(self, gpu: int, sensor: int) -> int:
        return 41

    def nvmlDeviceGetTotalEccErrors(self, gpu: int, kind: int, counter: int) -> int:
        return 2

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: int) -> list[Any]:
        return [SimpleNamespace(pid=42, usedGpuMemory=2 << 30), SimpleNamespace(pid=43, usedGpuMemory=None)]


HOLDERS = ("GPU 0: process 42 holds 2048 MiB", "GPU 0: process 43 holds 0 MiB")
MEMORY = "3072 of 143360 MiB used"


NAMED, BUSY, ERRORS = "NVIDIA H200, ", "7 % busy, 41 °C", ", 2 memory errors that could not be corrected"
SILENT = ("nvmlDeviceGetName", "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetComputeRunningProcesses")


@pytest.mark.parametrize(
    ("fails", "driver", "lines"),
    [
        ((), "550.54", (f"GPU 0: {NAMED}{MEMORY}, {BUSY}{ERRORS}", *HOLDERS)),
        (("nvmlSystemGetDriverVersion",), "", (f"GPU 0: {NAMED}{MEMORY}, {BUSY}{ERRORS}", *HOLDERS)),
        (SILENT, "550.54", (f"GPU 0: {MEMORY}, {BUSY}",)),
        (("nvmlDeviceGetMemoryInfo",), "550.54", ("GPU 0: GPU is lost",)),
        (("nvmlDeviceGetHandleByIndex",), "550.54", ("GPU 0: GPU is lost",)),
        (("nvmlDeviceGetCount",), "550.54", ("the driver does not answer: GPU is lost",)),
    ],
)
def test_what_is_told(fails: tuple[str, ...], driver: str, lines: tuple[str, ...]) -> None:
    assert told_by(Driver(*fails)) == Gpus(driver, lines)


def test_nothing_is_known_where_nobody_can_be_asked() -> None:
    assert told_by(None) == NO_GPUS == Gpus("", ())


async def test_an_answer_comes_from_another_thread() -> None:
    assert await asked(lambda: 7, 30) == 7


def test_nobody_waits_for_a_driver_that_blocks() -> None:
    """Not who asks, not who wants a thread for something else, and not who wants to leave."""
    program = """
import asyncio, time
from vllmd.engine.gpu import asked
async def main():
    for _ in range(40):
        try: await asked(lambda: time.sleep(3600), 0.01)
        except TimeoutError: continue
        raise SystemExit(1)
    await asyncio.to_thread(print, "done")
asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
