"""Jobs: one for each subject, told to everybody, stopped by nobody who leaves, and really over when they are."""

import asyncio

import pytest
from waiting import until

from vllmd.engine.feed import Feed
from vllmd.engine.jobs import KEPT_JOBS, Job, Jobs, Kind
from vllmd.errors import InstallError, JobCancelled, VllmdError
from vllmd.provisions import JobStatus, job_status, size
from vllmd.wire import to_json


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = 0
        self.may_end = asyncio.Event()
        self.cleaned_up = False

    async def __call__(self, job: Job[int]) -> int:
        self.begun += 1
        try:
            job.report("downloading", 1, 4)
            await self.may_end.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)  # to clean up may take a moment
            self.cleaned_up = True
            raise
        return 42


async def begun(work: Work) -> None:
    await until(lambda: work.begun > 0, "the work to begin")


async def test_a_second_ask_joins_the_first() -> None:
    jobs, work = Jobs(Feed()), Work()
    first, second = jobs.ask(Kind.PULL, "acme/m", work), jobs.ask(Kind.PULL, "acme/m", work)
    other = jobs.ask(Kind.VERIFY, "acme/m", work)
    work.may_end.set()
    assert first is second is not other
    assert (await first.result(), await second.result(), await other.result()) == (42, 42, 42)
    assert work.begun == 2
    assert jobs.ask(Kind.PULL, "acme/m", work) is not first, "what is over is begun anew"
    await jobs.close()


async def test_after_one_that_brings_less_another_one_is_begun() -> None:
    jobs, less, more = Jobs(Feed()), Work(), Work()
    complete = jobs.ask(Kind.PULL, "acme/m", less, frozenset({"weights"}))
    pull = jobs.ask(Kind.PULL, "acme/m", more, frozenset({"weights", "newest"}))
    assert jobs.ask(Kind.PULL, "acme/m", more, frozenset({"weights", "newest"})) is pull
    assert jobs.ask(Kind.PULL, "acme/m", less, frozenset({"weights"})) is complete, "it has begun already"
    await until(lambda: pull.status.phase == "waiting for another pull of it", "the second to wait")
    await begun(less)
    assert more.begun == 0, "one at a time"
    complete.cancel()
    await begun(more)
    assert complete.is_over, "whatever became of the first"
    assert jobs.ask(Kind.PULL, "acme/m", less, frozenset({"weights"})) is pull, "it brings that too"
    more.may_end.set()
    assert (await pull.result(), more.begun) == (42, 1)
    await jobs.close()


async def test_it_outlives_who_waits_for_it() -> None:
    jobs, work = Jobs(Feed()), Work()
    job = jobs.ask(Kind.PULL, "acme/m", work)
    waiter = asyncio.create_task(job.result())
    await begun(work)
    waiter.cancel()
    await asyncio.wait([waiter])
    assert not job.is_over
    work.may_end.set()
    assert await job.result() == 42


async def test_cancelled_it_is_over_only_when_it_has_cleaned_up() -> None:
    jobs, work = Jobs(Feed()), Work()
    job = jobs.ask(Kind.PULL, "acme/m", work)
    await begun(work)
    job.cancel()
    assert not job.is_over
    with pytest.raises(JobCancelled, match="pull of acme/m"):
        await job.result()
    assert work.cleaned_up
    assert job.status.state == "cancelled"
    job.cancel()
    assert job.status.state == "cancelled", "once is enough"


async def test_called_off_twice_it_still_cleans_up() -> None:
    jobs, work = Jobs(Feed()), Work()
    job = jobs.ask(Kind.USE, "vllm", work)
    await begun(work)
    job.cancel()
    await asyncio.sleep(0)  # it is cleaning up now
    job.cancel()
    await jobs.close()
    assert work.cleaned_up


async def test_it_can_be_cancelled_before_it_has_begun() -> None:
    jobs, work = Jobs(Feed()), Work()
    job = jobs.ask(Kind.PULL, "acme/m", work)
    job.cancel()
    with pytest.raises(JobCancelled):
        await job.result()
    assert (work.begun, job.status.state) == (0, "cancelled")


async def test_why_it_failed_is_told_to_each_who_waits() -> None:
    async def fail(job: Job[None]) -> None:
        raise InstallError("no room", "make some")

    job = Jobs(Feed()).ask(Kind.INSTALL, "vllm==1", fail)
    for _ in range(2):
        with pytest.raises(InstallError) as caught:
            await job.result()
        assert (caught.value.message, caught.value.hint) == ("no room", "make some")
    found = job.status
    assert (found.state, found.code, found.reason, found.hint) == ("failed", "install_failed", "no room", "make some")


async def test_an_unforeseen_error_is_told_as_ours(caplog: pytest.LogCaptureFixture) -> None:
    async def stumble(job: Job[None]) -> None:
        raise KeyError("x")

    with pytest.raises(VllmdError, match="vllmd made a mistake"):
        await Jobs(Feed()).ask(Kind.PULL, "m", stumble).result()
    assert "unforeseen error" in caplog.text


async def test_what_happens_is_published_and_figures_not_too_often() -> None:
    feed = Feed()

    async def work(job: Job[None]) -> None:
        job.report("asking")
        for done in range(1000):
            job.report("downloading", done, 1000)

    await Jobs(feed).ask(Kind.PULL, "m", work).result()
    entries, _ = await feed.after(0)
    found = [each.news for each in entries if isinstance(each.news, JobStatus)]
    phases = list(dict.fromkeys((each.state, each.phase) for each in found))
    assert phases == [("running", ""), ("running", "asking"), ("running", "downloading"), ("done", "downloading")]
    assert len(found) < 20
    assert (found[-1].done, found[-1].total, found[-1].percent) == (999, 1000, 99)


async def test_closing_ends_all_and_lets_none_begin() -> None:
    jobs, works = Jobs(Feed()), [Work(), Work()]
    found = [jobs.ask(Kind.PULL, str(at), work) for at, work in enumerate(works)]
    await begun(works[1])
    await jobs.close()
    assert all(each.is_over for each in found)
    assert all(each.cleaned_up for each in works)
    with pytest.raises(JobCancelled):
        await jobs.ask(Kind.PULL, "late", Work()).result()


async def test_some_kinds_may_end_before_the_others() -> None:
    jobs, work = Jobs(Feed()), Work()
    pull, use = jobs.ask(Kind.PULL, "acme/m", work), jobs.ask(Kind.USE, "vllm", work)
    await jobs.close(Kind.USE)
    assert (pull.is_over, use.is_over) == (False, True)
    await jobs.close()
    assert pull.is_over


async def test_only_the_last_that_ended_are_remembered() -> None:
    jobs, running = Jobs(Feed()), Work()
    longest = jobs.ask(Kind.PULL, "long", running)

    async def nothing(job: Job[None]) -> None:
        pass

    for number in range(KEPT_JOBS + 10):
        await jobs.ask(Kind.PULL, str(number), nothing).result()
    assert longest.id in jobs
    assert len(jobs) <= KEPT_JOBS + 2
    await jobs.close()


def test_a_job_in_words() -> None:
    job = JobStatus("1", "pull", "acme/m", phase="downloading", done=6_500_000_000, total=15_200_000_000)
    assert job.sentence() == "downloading 42 %, 6.5 GB of 15.2 GB"
    assert JobStatus("1", phase="asking").sentence() == "asking"
    assert JobStatus("1", state="failed", reason="no room").sentence() == "failed: no room"
    assert JobStatus("1", done=0, total=0).percent == 100
    assert job_status({**to_json(job), "a later version's": 1}) == job


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_999, "1.0 MB"), (15_231_000_000, "15.2 GB"), (123e9, "123 GB")],
)
def test_sizes_in_words(count: float, words: str) -> None:
    assert size(int(count)) == words
