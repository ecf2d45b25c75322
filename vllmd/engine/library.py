"""The models on this machine's disk: pulled from a hub, kept at a commit, verified, and taken away again.

The bytes are the business of another program (`pulling`); here is decided what is fetched, for whom, and when it need
not be. A model that was pulled stays as it is until somebody pulls it again: a load never moves it, and asks nobody.
"""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vllmd.engine import stock, unused
from vllmd.engine.hub import Shelf, cache_of, is_name, is_of_modelscope, is_offline, is_revision
from vllmd.engine.jobs import Job, Jobs, Kind
from vllmd.engine.manifest import Manifest, Manifests, split, subject_of
from vllmd.engine.plan import Plan
from vllmd.engine.pulling import Order, Verb, encode
from vllmd.engine.redaction import redacted, secrets_in
from vllmd.engine.run import run
from vllmd.engine.selection import BY_FORMAT
from vllmd.errors import HubUnreachable, InUse, NotOnHub, PullError, RateLimited, kind_of
from vllmd.provisions import JobStatus, LocalModel

log = logging.getLogger(__name__)

Told = Callable[[JobStatus], None]
Provide = Callable[[Plan, Told], Awaitable[Path | None]]
"""Sees to it that a plan's model is on the disk; returns where, or None where vLLM is to find it itself."""

QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_XET": "1"}
"""Xet has no way to go on with half a file."""

NO_VERDICT = (HubUnreachable, RateLimited, PullError)
"""What says nothing of the model, as that the cache may not be written: vLLM may start with what lies there."""

NEWEST = "newest"
"""What a pull brings and the completion of an earlier one does not: the commit that the revision is now."""


async def as_configured(plan: Plan, told: Told) -> Path | None:
    """What the plan says is what vLLM gets."""
    return None


@dataclass(frozen=True)
class Wanted:
    """A model on a hub, and how to get it.

    Args:
        repo: its name there.
        revision: a branch, tag or commit; empty for the hub's default.
        patterns: of the files that are wanted; empty for those that vLLM needs.
        environ: the variables that say where models lie, and who asks for them.
    """

    repo: str
    revision: str = ""
    patterns: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        """As people write it."""
        return subject_of(self.repo, self.revision)

    @property
    def shelf(self) -> Shelf:
        """Its place in the cache."""
        return Shelf(cache_of(self.environ), self.repo)


def wanted_by(plan: Plan) -> Wanted | None:
    """What a plan's engine needs of a hub; None if it is served as it is, or is vLLM's to find."""
    model = plan.model
    kind, place = str(model.flag("load-format") or ""), model.flag("download-dir")
    if not is_name(model.model) or kind in ("dummy", "gguf") or os.path.isdir(model.model):
        return None
    if is_of_modelscope(plan.surroundings):
        return None
    environ = {**plan.surroundings, **({"HF_HUB_CACHE": str(place)} if place else {})}  # as vLLM takes that flag
    return Wanted(model.model, str(model.flag("revision") or ""), model.files or BY_FORMAT.get(kind, ()), environ)


class Library:
    """All of them.

    Args:
        jobs: where the work is listed.
        state: the daemon's directory.
        surroundings: the variables of who asks for a model that is not configured.
        plans: of the models that are configured now.
    """

    def __init__(
        self, jobs: Jobs, state: Path, surroundings: Mapping[str, str], plans: Callable[[], Sequence[Plan]]
    ) -> None:
        self._jobs = jobs
        self._directory = state / "models"
        self._manifests = Manifests(self._directory)
        self._surroundings = surroundings
        self._plans = plans
        self.changes = 0
        """How often something on the disk was changed here."""

    # ── to have them ──

    def wanted(self, name: str, revision: str = "") -> Wanted:
        """What is meant by the name of a configured model, or by a name on the hub, `@REVISION` included.

        Raises:
            NotOnHub: it is no such name, or a directory.
        """
        name, inner = split(name)
        revision = revision or inner
        if revision and not is_revision(revision):
            raise NotOnHub(f"{revision!r} is no name of a revision", "name a branch, a tag, or a commit")
        for plan in self._plans():
            found = wanted_by(plan)
            if plan.name == name and found is None:
                raise NotOnHub(f"{name} is no model on a hub: {plan.model.model}", "it is served as it is")
            if found and name in (plan.name, plan.model.model):
                return Wanted(found.repo, revision or found.revision, found.patterns, found.environ)
        if not is_name(name):
            raise NotOnHub(f"{name!r} is no name of a model on a hub", "names look like  Qwen/Qwen2-7B-Instruct")
        return Wanted(name, revision, (), self._surroundings)

    def pull(self, wanted: Wanted, verb: Verb = Verb.PULL) -> Job[Path]:
        """Fetches a model as it is on the hub now, in a job; after one that brings less, if that is under way."""
        brings = frozenset({json.dumps(sorted(wanted.patterns)), *([NEWEST] if verb is Verb.PULL else [])})
        return self._jobs.ask(Kind.PULL, wanted.subject, lambda job: self._work(wanted, verb, job), brings)

    def verify(self, wanted: Wanted, *, repair: bool) -> Job[Path]:
        """Compares a model's files with what they should be, in a job."""
        verb = Verb.REPAIR if repair else Verb.VERIFY
        brings = frozenset([verb.value] if repair else [])
        return self._jobs.ask(Kind.VERIFY, wanted.subject, lambda job: self._work(wanted, verb, job), brings)

    async def provide(self, plan: Plan, told: Told) -> Path | None:
        """`Provide`: fetches what is missing; a model that is whole costs a look at its files, and no question.

        One that was pulled for other `files`, or another `load-format`, gets what it lacks of the same commit. While
        nobody can be asked for that, what is there has to do.

        Raises:
            PullError: it cannot be had.
        """
        wanted = wanted_by(plan)
        if wanted is None:
            return None
        found, has_all = await asyncio.to_thread(self._whole, wanted)
        if has_all or is_offline(wanted.environ):
            return found
        job = self.pull(wanted, Verb.COMPLETE)
        try:
            with job.followed(told):
                return await job.result()
        except PullError as error:
            if type(error) not in NO_VERDICT or not (found or wanted.shelf.has_some(wanted.revision)):
                raise
            log.warning("%s: %s: taking what is in the cache", wanted.subject, error.message)
            return found

    def _whole(self, wanted: Wanted) -> tuple[Path | None, bool]:
        """Where the model lies if all is there that was pulled, and whether that is all that is wanted."""
        manifest = self._manifests.find(wanted.repo, wanted.revision)
        if manifest is None or not wanted.shelf.is_whole(manifest):
            return None, False
        return wanted.shelf.snapshot(manifest.commit), manifest.covers(wanted.patterns)

    async def _work(self, wanted: Wanted, verb: Verb, job: Job[Path]) -> Path:
        is_known = self._manifests.find(wanted.repo, wanted.revision) is not None
        if verb in (Verb.VERIFY, Verb.REPAIR) and not is_known:
            raise NotOnHub(f"{wanted.subject} was never pulled", f"do it first:  vllmctl pull {wanted.subject}")
        if verb in (Verb.PULL, Verb.COMPLETE) and is_offline(wanted.environ):
            raise HubUnreachable("asking the model hub is switched off", "do not set HF_HUB_OFFLINE")
        order = Order(
            verb=verb.value,
            repo=wanted.repo,
            revision=wanted.revision,
            patterns=wanted.patterns,
            hub=str(wanted.shelf.hub),
            state=str(self._directory),
            parent=os.getpid(),
        )
        secrets = secrets_in(wanted.environ)
        # Of vllmd's own Python, wherever that has its modules from: a package's program runs with -I.
        environ = {**wanted.environ, **QUIET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        argv = [sys.executable, "-P", "-m", "vllmd.engine.pulling", encode(order)]
        last = Last()
        try:
            status = await run(argv, {}, partial(_said, job, last, secrets), secrets=environ)
        finally:
            self.changes += 1
        if not last.is_done:
            raise PullError(f"the program that fetches {wanted.repo} ended with status {status}", "see the log")
        manifest = self._manifests.find(wanted.repo, wanted.revision)
        assert manifest is not None, "it is written before all is said to be done"
        return wanted.shelf.snapshot(manifest.commit)

    # ── to look at them, and to be rid of them ──

    def stored(self) -> list[LocalModel]:
        """What is on the disk. Reads directories: not for the event loop."""
        return [each for hub in self._hubs() for each in stock.listing(hub, self._known(), self._users())]

    def remove(self, name: str, users: Iterable[str]) -> int:
        """Takes a model off the disk, or with `@REVISION` one of its commits. Not for the event loop.

        Args:
            name: as `wanted` takes it.
            users: the configured models of this repository that are in memory.

        Returns:
            How many bytes that freed.

        Raises:
            InUse: somebody needs it.
            NotOnHub: nothing of it is there.
        """
        wanted = self.wanted(name)
        if in_memory := ", ".join(users):
            raise InUse(f"{wanted.repo} is in use by {in_memory}", f"unload it first:  vllmctl unload {in_memory}")
        for kind in (Kind.PULL, Kind.VERIFY):
            if any(split(each.subject)[0] == wanted.repo and each.kind is kind for each in self._running()):
                raise InUse(f"{wanted.repo} is in use by a job: {kind}", "see:  vllmctl jobs")
        known = [each for each in self._known() if each.repo == wanted.repo]
        commits = stock.commits(wanted.shelf, known, split(name)[1])
        if not commits and (split(name)[1] or not wanted.shelf.root.exists()):
            raise NotOnHub(f"there is no {name} on this disk", "see:  vllmctl models --local")
        try:
            freed = stock.remove(wanted.shelf, commits)
        except BlockingIOError:
            raise InUse(f"{wanted.repo} is in use by another process that fetches it", "wait for its end") from None
        self.changes += 1
        for manifests in (self._manifests, self._manifests.pending, self._manifests.superseded):
            for each in list(manifests):
                if each.repo == wanted.repo and each.commit in commits:
                    manifests.drop(each)
        return freed

    def prune(self, lines: Collection[bytes], starting: Collection[Plan]) -> tuple[list[str], int]:
        """Takes off the disk what was pulled here and has made way for a newer commit. Not for the event loop.

        Args:
            lines: the command lines of all engines, which name the commit that each is made of.
            starting: what is about to have one.

        Returns:
            What is gone, as people write it, and how many bytes that freed.
        """
        wanted = [found for plan in self._plans() if (found := wanted_by(plan))]
        about_to = {found.repo for plan in starting if (found := wanted_by(plan))}

        def in_memory(manifest: Manifest) -> bool:
            return manifest.repo in about_to or any(manifest.commit.encode() in line for line in lines)

        pins = {(each.repo, each.revision) for each in wanted}
        self.changes += 1
        return unused.prune(self._manifests, self._hubs(), pins, in_memory)

    def uses(self, plan: Plan, name: str) -> bool:
        """Whether a plan's engine is made of the repository that is meant by `name`."""
        mine, other = wanted_by(plan), self.wanted(name)
        return mine is not None and mine.shelf == other.shelf

    def _known(self) -> list[Manifest]:
        """All of whatever was pulled, or is about to be."""
        return [*self._manifests, *self._manifests.pending]

    def _running(self) -> Iterator[Job[Any]]:
        return (each for each in self._jobs.values() if not each.is_over)

    def _hubs(self) -> list[Path]:
        wanted = [found.shelf.hub for plan in self._plans() if (found := wanted_by(plan))]
        return list(dict.fromkeys([cache_of(self._surroundings), *wanted]))

    def _users(self) -> dict[tuple[Path, str], tuple[str, ...]]:
        users: dict[tuple[Path, str], tuple[str, ...]] = {}
        for plan in self._plans():
            if found := wanted_by(plan):
                manifest = self._manifests.find(found.repo, found.revision)
                place = found.shelf.snapshot(manifest.commit) if manifest else found.shelf.root
                key = (place, found.repo)
                users[key] = (*users.get(key, ()), plan.name)
        return users


class Last:
    """Whether the program has said that all is done."""

    is_done = False


def _said(job: Job[Path], last: Last, secrets: Sequence[str], line: str) -> None:
    """One line of the program's. Raises what it says has gone wrong, and with that ends it."""
    try:
        ((key, value),) = json.loads(line).items()
    except (ValueError, AttributeError):
        key, value = "line", line  # a library's own words
    if key == "progress":
        job.report(*value)
    elif key == "error":
        code, message, hint = (redacted(str(each), secrets) for each in value[:3])
        raise kind_of(code)(message, hint, *value[3:])
    elif key == "done":
        last.is_done = True
    else:
        job.line(redacted(str(value), secrets))
