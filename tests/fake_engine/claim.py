"""The memory of a GPU that the engine takes, as vLLM takes it: a share of the first card that it sees."""

import math
import os
from pathlib import Path

import virtual_gpus

from .knobs import Flags, Knobs

GIB = virtual_gpus.GIB


class Claim:
    """What the engine holds; nothing where there are no virtual GPUs (the knob GPUS).

    Args:
        pid: of the process that holds it.
    """

    def __init__(self, flags: Flags, knobs: Knobs, pid: int) -> None:
        self._folder, self._pid = Path(knobs.gpus), pid
        self._is_real = bool(knobs.gpus)
        self._share, self._wanted, self._residue = flags.gpu_memory_utilization, knobs.memory, knobs.residue

    def take(self) -> str:
        """Takes all that it wants; returns what vLLM says where that is not free (v1/worker/utils.py)."""
        try:
            self.wake(1.0)
        except virtual_gpus.NotFreeError as error:
            total = virtual_gpus.cards(self._folder)[self._card].total
            there = f"{_gib(error.free)}/{_gib(total)}"
            return (
                f"ValueError: Free memory on device cuda:0 ({there} GiB) on startup is less than desired GPU memory "
                f"utilization ({self._share}, {_gib(self._size)} GiB). Decrease GPU memory utilization or reduce GPU "
                "memory used by other processes."
            )
        return ""

    def wake(self, part: float) -> None:
        """Holds that part of it, beside what a sleeping engine holds anyway; raises NotFreeError."""
        if self._is_real:
            residue = min(self._residue, self._size)
            virtual_gpus.hold(self._folder, self._pid, self._card, residue + int((self._size - residue) * part))

    def sleep(self) -> None:
        """Lets go of all but what a sleeping engine holds."""
        self.wake(0.0)

    @property
    def _size(self) -> int:
        total = virtual_gpus.cards(self._folder)[self._card].total
        return self._wanted or math.ceil(total * self._share)

    @property
    def _card(self) -> int:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
        uuids = [card.uuid for card in virtual_gpus.cards(self._folder)]
        return uuids.index(first) if first in uuids else int(first)


def _gib(size: int) -> str:
    return f"{round(size / GIB, 2)}"
