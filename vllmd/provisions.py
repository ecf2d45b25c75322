"""What the daemon tells of engines and models as things one installs and pulls: jobs, versions, what fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vllmd.statuses import roughly
from vllmd.wire import known


@dataclass(frozen=True)
class LocalModel:
    """A model on the daemon's disk, at one commit.

    Args:
        repo: its name on the hub.
        revisions: by which it was asked for, but for the hub's default.
        commit: what it is.
        size: what of it is there, in bytes; commits share files, so that not all of it may be its own.
        total: what it should be; None where vllmd did not pull it.
        complete: whether all of it is there; None where vllmd did not pull it.
        used_by: the configured models that are made of it.
        pulled_at: when the hub was asked, Unix seconds; None where vllmd did not pull it.
        path: its directory.
    """

    repo: str
    revisions: tuple[str, ...] = ()
    commit: str = ""
    size: int = 0
    total: int | None = None
    complete: bool | None = None
    used_by: tuple[str, ...] = ()
    pulled_at: float | None = None
    path: str = ""


class JobState(StrEnum):
    """Where a job is."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class JobStatus:
    """Long work of the daemon's own as it is now: a model that is pulled, an environment that is installed.

    Args:
        id: as in its path.
        kind: what is done: `pull`, `verify`, `install`, `use`.
        subject: what it is done to.
        state: a value of `JobState`.
        phase: what is being done, in a few words.
        done, total: bytes; None where nobody counts them.
        bytes_per_s: how fast it goes of late; None while nobody can know.
        eta_s: seconds until the phase is over; None while nobody can know.
        started_at, ended_at: Unix seconds; the second is None while it runs.
        code, reason, hint: why it failed; empty if it did not.
    """

    id: str
    kind: str = ""
    subject: str = ""
    state: str = "running"
    phase: str = ""
    done: int | None = None
    total: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    code: str = ""
    reason: str = ""
    hint: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state != JobState.RUNNING

    @property
    def percent(self) -> int | None:
        """How much of the phase is done, 0 to 100; None where nobody knows the whole."""
        if self.done is None or self.total is None:
            return None
        return min(100, 100 * self.done // self.total) if self.total else 100

    def sentence(self) -> str:
        """The job in a few words: `downloading 43 %, 6.5 of 15.2 GB, 118 MB/s, about 75 s left`."""
        if self.is_over:
            return f"{self.state}: {self.reason}" if self.reason and self.state == JobState.FAILED else self.state
        words = [" ".join(filter(None, [self.phase or "begins", _percent(self.percent)]))]
        if self.done is not None and self.total is not None:
            words.append(f"{size(self.done)} of {size(self.total)}")
        if self.bytes_per_s is not None:
            words.append(f"{size(round(self.bytes_per_s))}/s")
        if self.eta_s is not None:
            words.append(f"{roughly(self.eta_s)} left")
        return ", ".join(words)


@dataclass(frozen=True)
class EnvironmentStatus:
    """A version of vLLM that is installed, in an environment of its own.

    Args:
        id: the name of its directory.
        requirement: what was installed.
        version: what it calls itself.
        current: whether models run in it that have nothing of their own.
        models: those that run in it, or would if they were loaded.
        bytes: what it takes of the disk; None where nobody has counted.
        installed_at: Unix seconds; None where nobody knows.
    """

    id: str
    requirement: str = ""
    version: str = ""
    current: bool = False
    models: tuple[str, ...] = ()
    bytes: int | None = None
    installed_at: float | None = None


def _percent(percent: int | None) -> str:
    return "" if percent is None else f"{percent} %"


def size(count: int) -> str:
    """A count of bytes as people write it, in powers of ten as disks and downloads are sold: `15.2 GB`."""
    amount, units = float(count), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    for larger in units:
        if amount < 999.5:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.95 else f"{amount:.1f} {unit}"


@dataclass(frozen=True)
class Fit:
    """Whether the memory is there that a model's engine needs; of several GPUs, each has such a share of it.

    Args:
        model: its name.
        verdict: `yes`, `tight`, `no` or `unknown`.
        reason, hint: why not, and what to do about it; empty where all is well.
        permanent: it would not fit if nobody else held memory either.
        device: `GPU` or `CPU`; empty where that is not known.
        devices: how many share the model.
        max_model_len: tokens of the longest sequence.
        weights_bytes, kv_token_bytes, kv_sequence_bytes: on each device; of one token, and of the longest sequence.
        kv_bytes: the KV cache that is set aside, whatever a sequence needs; None: what is left.
        allowance_bytes: for all else, as in starts that were recorded.
        needed_bytes: the sum of weights, KV cache and allowance.
        total_bytes, allowed_bytes, free_bytes: each device's memory: all, what the engine may have, what is free.
        longest: the largest `max-model-len` that fits; None where none does, or nobody knows.
        share: the least `gpu-memory-utilization` that fits; None likewise.
    """

    model: str
    verdict: str = "unknown"
    reason: str = ""
    hint: str = ""
    permanent: bool = False
    device: str = ""
    devices: int = 1
    max_model_len: int | None = None
    weights_bytes: int | None = None
    kv_token_bytes: int | None = None
    kv_sequence_bytes: int | None = None
    kv_bytes: int | None = None
    allowance_bytes: int | None = None
    needed_bytes: int | None = None
    total_bytes: int | None = None
    allowed_bytes: int | None = None
    free_bytes: int | None = None
    longest: int | None = None
    share: float | None = None


def local_model(table: Mapping[str, Any]) -> LocalModel:
    """Reads what is said of one model on the disk, also by another version."""
    lists = {key: tuple(table.get(key, ())) for key in ("revisions", "used_by")}
    return known(LocalModel, {**table, **lists})


def job_status(table: Mapping[str, Any]) -> JobStatus:
    """Reads what is said of one job, also by another version."""
    return known(JobStatus, table)


def environment_status(table: Mapping[str, Any]) -> EnvironmentStatus:
    """Reads what is said of one environment, also by another version."""
    return known(EnvironmentStatus, {**table, "models": tuple(table.get("models", ()))})


def fit(table: Mapping[str, Any]) -> Fit:
    """Reads a sum, also another version's."""
    return known(Fit, table)
