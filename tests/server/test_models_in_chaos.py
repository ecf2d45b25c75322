"""Three models on a GPU that has room for one or two, clients who come and leave by chance, and engines that do not
sleep, wake or start, or are killed: everybody is served, and nobody is cut off for another's sake."""

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
import virtual_gpus
from daemons import running
from pairs import CHAT, Pair, said
from waiting import until

SECONDS = 12.0
"""Of chaos; what was asked then is waited for."""

CLIENTS = 6
TOKENS = 6
SHARES = {"a": (0.6, 1), "b": (0.5, 2), "c": (0.3, 0)}
"""Model → its share of the GPU, and the level of its sleep: `c` fits beside any one of the others, which do not fit
together."""

SUPERVISION = {"startup_stall_s": 4, "probe_timeout_s": 2, "stop_timeout_s": 2, "restart_limit": 20}
FAULTS: list[dict[str, Any]] = [
    {},
    {"sleep": "refuses"},
    {"sleep": "dies"},
    {"sleep": "hangs"},
    {"sleep_s": 1},
    {"wake": "refuses"},
    {"wake": "dies"},
    {"wake": "mute"},
    {"wake_s": 1},
    {"reload": "refuses"},
    {"start_end": "exit:1"},
    {"ready_after_s": 1},
]


class Chaos:
    """One daemon and its clients. Every choice comes from `chance`."""

    def __init__(self, daemon: Pair, chance: random.Random) -> None:
        self.daemon, self.chance = daemon, chance
        self.served: Counter[str] = Counter()
        self.left: set[str] = set()
        self.ends_at = time.monotonic() + SECONDS

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.ends_at

    async def client(self, number: int) -> None:
        """Asks one thing after the other, mostly of one model, and sometimes leaves before the answer has come."""
        favourite = "abc"[number % 3]
        for count in range(10_000):
            if self.is_over:
                return
            model = favourite if self.chance.random() < 0.7 else self.chance.choice("abc")
            await self.ask(model, f"{number}-{count}")
            await asyncio.sleep(self.chance.choice([0, 0, 0.1, 1.5]))

    async def ask(self, model: str, id: str) -> None:
        body = {**said(model), "stream": True}
        async with self.daemon.unix.stream(CHAT, body, headers={"x-request-id": id}) as answer:
            if self.chance.random() < 0.2:
                self.left.add(id)
                with suppress(TimeoutError):
                    await asyncio.wait_for(answer.end(), self.chance.random() * 2)
                return
            await answer.end()
            assert answer.status == 200, answer.body
            assert answer.whole, answer.body
            assert answer.body.endswith(b"data: [DONE]\n\n"), answer.body
            assert len(re.findall(rb'"content":" ?tok', answer.body)) == TOKENS, answer.body
            self.served[model] += 1

    async def trouble(self, kills: bool) -> None:
        """Faults, one after the other; in the end the engines are well."""
        while not self.is_over:
            fault = self.chance.choice(FAULTS)
            once = {"once": str(self.daemon.folder / f"once{self.chance.random()}")} if "start_end" in fault else {}
            self.well(**fault, **once)
            await asyncio.sleep(self.chance.random())
            if kills and self.chance.random() < 0.2:
                await self.kill()
        self.well()

    def well(self, **faults: Any) -> None:
        self.daemon.control(tokens=TOKENS, tokens_per_s=20, **faults)

    async def kill(self) -> None:
        answer = await self.daemon.unix.ask("/api/status")
        pids = [each["pid"] for each in answer.json()["models"] if each["pid"]]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)

    async def is_quiet(self) -> bool:
        status = (await self.daemon.unix.ask("/api/status")).json()
        idle = not any(each["running"] or each["held"] for each in status["models"])
        return idle and all(each["state"] in ("ready", "asleep", "stopped") for each in status["models"])


@pytest.mark.parametrize("kills", [False, True], ids=["no kills", "kills"])
async def test_everybody_is_served_and_nobody_is_cut_off_for_anothers_sake(kills: bool) -> None:
    seed = random.SystemRandom().randrange(10**6)
    models = {
        name: {"args": {"gpu-memory-utilization": share}, "sleep_level": level}
        for name, (share, level) in SHARES.items()
    }
    daemon = Pair(
        models,
        of_all={"load": "demand"},
        memory={"turn_s": 1},
        supervision=SUPERVISION,
        replay={"limit": 50},
    )
    with running(daemon, ready=False):
        there = Chaos(daemon, random.Random(seed))
        there.well()
        try:
            async with asyncio.timeout(100), asyncio.TaskGroup() as group:
                group.create_task(there.trouble(kills))
                for number in range(CLIENTS):
                    group.create_task(there.client(number))
            await until(there.is_quiet, "nobody to wait, and every model to be somewhere", 60)
            for name in SHARES:
                await daemon.ask(name)
            assert daemon.held <= sum(virtual_gpus.cards(daemon.gpus)[0].total * share for share, _ in SHARES.values())
            sent = Counter(each["headers"].get("x-request-id", "") for each in daemon.requests())
            twice = {id for id, times in sent.items() if id and times > 1}
            assert kills or not twice, f"sent again, though no engine died: {twice}"
            assert kills or "goes on with the answer" not in daemon.log
        except BaseException as error:
            error.add_note(f"seed {seed}; {daemon.states}\n{trail(daemon.log)}")
            raise


def trail(log: str) -> str:
    """What vllmd itself has said, without the engines' lines."""
    lines = [line[:200] for line in log.splitlines() if " → " in line or "WARN" in line or "memory" in line]
    return "\n".join(line for line in lines if "pid=" not in line)[-6000:]
