"""What the GPU's driver says (NVML), where there is one.

A driver can fail in many ways and can block for long, so every question is asked in a thread of its own, which nobody
waits for at the end, and every failure is an answer: none, or a sentence.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

BACK_WITHIN_S = 30.0
PAUSE_S = 0.2
ANSWER_S = 5.0
"""What a driver gets for an answer: a card that has fallen off the bus can take minutes, and nobody shall wait."""


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


async def asked(question: Callable[[], T], within_s: float = ANSWER_S) -> T:
    """The answer to a question that may block for ever: of the loop's own threads it takes none away, and no exit of
    vllmd's waits for it.

    Args:
        question: raises nothing.

    Raises:
        TimeoutError: there was none in time.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def tell(told: T) -> None:
        if not answer.done():
            answer.set_result(told)

    def ask() -> None:
        told = question()
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(tell, told)

    threading.Thread(target=ask, name="gpu", daemon=True).start()
    async with asyncio.timeout(within_s):
        return await answer


async def cards() -> tuple[Card, ...]:
    """Every GPU, in the order of their PCI addresses; none where there is no way to ask, or no answer."""
    try:
        return await asked(_cards)
    except TimeoutError:
        log.warning("the GPU's driver has not answered in %g s", ANSWER_S)
        return ()


@dataclass(frozen=True)
class Gpus:
    """What the driver says; nothing where there is no way to ask.

    Args:
        driver: its version.
        lines: one for each GPU, and one for each process that holds memory of it.
    """

    driver: str = ""
    lines: tuple[str, ...] = ()


NO_GPUS = Gpus()
"""Nothing is known."""


async def facts() -> Gpus:
    """Kind, memory, load and health of each GPU, after at most `ANSWER_S` seconds."""
    try:
        return await asked(lambda: told_by(_nvml()))
    except TimeoutError:
        return Gpus(lines=(f"the driver has not answered in {ANSWER_S:g} s",))


async def memory_is_back(pids: set[int]) -> None:
    """Waits until the driver counts no memory for these dead processes any more; the next engine may need it.

    Returns at once where nobody can be asked; with a line in the log after `BACK_WITHIN_S` seconds, or after `ANSWER_S`
    without an answer.
    """
    deadline = asyncio.get_running_loop().time() + BACK_WITHIN_S
    try:
        while held := await asked(lambda: _memory_of(pids)):
            if asyncio.get_running_loop().time() > deadline:
                log.warning("the GPU's driver still counts %d MiB for an engine that has ended", held >> 20)
                return
            await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        log.warning("the GPU's driver has not answered in %g s", ANSWER_S)


def _cards() -> tuple[Card, ...]:
    nvml = _nvml()
    if nvml is None:
        return ()
    try:
        return read_cards(nvml)
    except Exception as error:  # as in `told_by`
        log.warning("the GPU's driver does not say how much memory there is: %s", error)
        return ()


def read_cards(nvml: Any) -> tuple[Card, ...]:
    """Every GPU, as the module pynvml, once it is ready for use, tells of them."""
    return tuple(_card(nvml, number) for number in range(nvml.nvmlDeviceGetCount()))


def _card(nvml: Any, number: int) -> Card:
    gpu = nvml.nvmlDeviceGetHandleByIndex(number)
    memory, uuid = nvml.nvmlDeviceGetMemoryInfo(gpu), nvml.nvmlDeviceGetUUID(gpu)
    return Card(uuid.decode() if isinstance(uuid, bytes) else str(uuid), int(memory.total), int(memory.free))


def told_by(nvml: Any) -> Gpus:
    """What the driver says.

    Args:
        nvml: the module pynvml, ready for use; None where there is no way to ask.
    """
    if nvml is None:
        return NO_GPUS
    driver = _answer(lambda: _text(nvml.nvmlSystemGetDriverVersion()))
    try:
        count = nvml.nvmlDeviceGetCount()
    except Exception as error:  # NVML's errors have no common name without the package
        return Gpus(driver, (f"the driver does not answer: {error}",))
    return Gpus(driver, tuple(line for number in range(count) for line in _describe(nvml, number)))


def _describe(nvml: Any, number: int) -> Iterator[str]:
    """What is known of one GPU. A card that is lost, or too old to count errors, says so in the place of an answer."""
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(number)
        memory = nvml.nvmlDeviceGetMemoryInfo(gpu)
    except Exception as error:
        yield f"GPU {number}: {error}"
        return
    words = (
        lambda: _text(nvml.nvmlDeviceGetName(gpu)),
        lambda: f"{memory.used >> 20} of {memory.total >> 20} MiB used",
        lambda: f"{nvml.nvmlDeviceGetUtilizationRates(gpu).gpu} % busy",
        lambda: f"{nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU)} °C",
        lambda: _errors(nvml, gpu),
    )
    yield f"GPU {number}: " + ", ".join(filter(None, map(_answer, words)))
    for each in _holders(nvml, gpu):
        yield f"GPU {number}: process {each.pid} holds {(each.usedGpuMemory or 0) >> 20} MiB"


def _errors(nvml: Any, gpu: Any) -> str:
    count = nvml.nvmlDeviceGetTotalEccErrors(gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    return f"{count} memory errors that could not be corrected" if count else ""


def _holders(nvml: Any, gpu: Any) -> list[Any]:
    try:
        return list(nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
    except Exception:  # in a container it may not be told
        return []


def _answer(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception:  # not every card knows everything
        return ""


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


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
