"""Memory that many want, over an hour of a made-up clock: everybody gets in within a bound, nobody is cut, nobody is
chased around, and on one GPU one thing happens at a time."""

import math
import random
from dataclasses import dataclass, field

import pytest

from vllmd.engine.residency import LINGER_S, Answer, Bid, Resident, Rules, decide
from vllmd.lifecycle import State

STEP_S = 0.5
START_S, STOP_S = 4.0, 2.0
HOUR_S = 600.0
"""As good as one."""

LONGEST_S = 6.0
"""No request runs longer."""


@dataclass
class Engine:
    """One model: how much of the GPU it takes, and how many clients ask it how often.

    Args:
        size: GiB.
        clients: that ask it.
        pause_s: how long one waits between two requests, on average.
    """

    name: str
    size: int
    clients: int
    pause_s: float
    chance: random.Random
    state: State = State.STOPPED
    changes_at: float = math.inf
    ready_at: float = 0.0
    used_at: float = 0.0
    since: float = 0.0
    swaps: int = 0
    is_closed: bool = False
    running: list[float] = field(default_factory=list)
    """When each request ends."""
    idle: list[float] = field(default_factory=list)
    """When each client will ask."""
    waiting: list[float] = field(default_factory=list)
    """Since when each request waits."""

    def __post_init__(self) -> None:
        self.idle = [self.chance.random() * self.pause_s for _ in range(self.clients)]

    def live(self, now: float) -> None:
        """What happens by itself."""
        self.waiting += [now for at in self.idle if at <= now]
        self.idle = [at for at in self.idle if at > now]
        ended = [at for at in self.running if at <= now]
        self.running = [at for at in self.running if at > now]
        self.idle += [now + self.chance.expovariate(1 / self.pause_s) if self.pause_s else now for _ in ended]
        self.used_at = now if ended else self.used_at
        if self.changes_at <= now:
            self.changes_at = math.inf
            self.state = State.READY if self.state is State.STARTING else State.STOPPED
            self.ready_at = now
        if self.state is State.READY and not self.is_closed:
            self.running += [now + self.chance.uniform(0.1, LONGEST_S) for _ in self.waiting]
            self.waiting = []


class Gpu:
    """80 GiB, and who is there. Looked at as often as the residents are."""

    def __init__(self, engines: list[Engine], rules: Rules) -> None:
        self.engines, self.rules, self.now = engines, rules, 0.0
        self.longest_wait_s = 0.0

    def run(self, seconds: float) -> None:
        while self.now < seconds:
            self.now += STEP_S
            for each in self.engines:
                each.live(self.now)
                self.longest_wait_s = max([self.longest_wait_s, *(self.now - since for since in each.waiting)])
            self.look()

    def look(self) -> None:
        here = [each for each in self.engines if each.state is not State.STOPPED]
        want = [each for each in self.engines if each.state is State.STOPPED and each.waiting]
        free = 80 - sum(each.size for each in here)
        for each in want:
            each.since = each.since or self.now
        residents = [self.resident(each) for each in here]
        bids = [
            Bid(
                each.name,
                frozenset("0"),
                each.size,
                each.size,
                total=80,
                free=free,
                since=each.since,
                is_wanted=True,
                yields=True,
                is_gpu=True,
            )
            for each in want
        ]
        decision = decide(bids, residents, self.rules, self.now)
        for each in here:
            each.is_closed = each.name in decision.closed
            if each.name in decision.leave:
                assert not each.running, "nobody is cut"
                each.state, each.changes_at, each.swaps = State.STOPPING, self.now + STOP_S, each.swaps + 1
        for each in want:
            if decision.answers[each.name] is Answer.GRANTED:
                each.state, each.changes_at, each.since = State.STARTING, self.now + START_S, 0.0
        changing = [each for each in self.engines if each.state in (State.STARTING, State.STOPPING)]
        assert len(changing) <= 1, f"at once: {changing}"
        assert sum(each.size for each in self.engines if each.state is not State.STOPPED) <= 80

    def resident(self, each: Engine) -> Resident:
        return Resident(
            each.name,
            frozenset("0"),
            each.size,
            each.state,
            len(each.running),
            len(each.waiting),
            each.ready_at,
            each.used_at,
            is_gpu=True,
        )


SIZES = {"one at a time": [60, 60, 60], "two at a time": [40, 40, 40, 40], "one or two": [30, 50, 60, 20]}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("turn_s", [0, 5, 30])
@pytest.mark.parametrize("pause_s", [0, 2, 20])
def test_everybody_gets_in_and_nobody_is_chased_around(sizes: list[int], turn_s: float, pause_s: float) -> None:
    chance = random.Random(f"{sizes}{turn_s}{pause_s}")
    engines = [Engine("abcd"[number], size, 4, pause_s, chance) for number, size in enumerate(sizes)]
    gpu = Gpu(engines, Rules(turn_s=turn_s))
    gpu.run(HOUR_S)
    turn = max(turn_s, LINGER_S) + LONGEST_S + START_S + 2 * STOP_S + 4 * STEP_S
    assert gpu.longest_wait_s <= len(sizes) * turn, [each.swaps for each in engines]
    if turn_s and not pause_s and len(set(sizes)) == 1:
        swaps = sum(each.swaps for each in engines)
        assert swaps <= 80 // sizes[0] * HOUR_S / turn_s, "nobody loses its turn"
