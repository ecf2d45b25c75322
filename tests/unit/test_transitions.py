"""The life of an engine, told in stories. What holds in all of them: test_every_transition.py."""

from collections.abc import Callable
from dataclasses import replace

from vllmd.lifecycle import (
    Effect,
    Engine,
    Event,
    Evict,
    Exited,
    Kill,
    Load,
    Policy,
    Probe,
    ProbeFailed,
    ProbeOk,
    Progressed,
    PutToSleep,
    Restart,
    SetTimer,
    SleepFailed,
    Slept,
    Spawn,
    State,
    Terminate,
    Timer,
    TimerFired,
    Unload,
    Verdict,
    Wake,
    WakeFailed,
    Wanted,
    Woken,
)
from vllmd.transitions import BACKOFF_JITTER, STARTUP_PROBE_INTERVAL_S, step

Happening = Callable[[Engine], Event]
"""What happens to an engine; the event bears the epoch or generation that is current then."""

POLICY = Policy(
    probe_interval_s=30,
    failure_threshold=3,
    startup_stall_s=300,
    stop_timeout_s=20,
    stable_after_s=120,
    restart_limit=2,
    backoff_initial_s=1,
    backoff_max_s=60,
)
CRASH = Verdict("crashed", "it fell over")
AWAY = Verdict("hub unreachable", "the hub is away", retry_after_s=0.0)
HOPELESS = Verdict("no such model", "there is no such model", permanent=True)


def load(engine: Engine) -> Event:
    return Load()


def unload(engine: Engine) -> Event:
    return Unload()


def restart(engine: Engine) -> Event:
    return Restart()


def wanted(engine: Engine) -> Event:
    return Wanted()


def evict(engine: Engine) -> Event:
    return Evict()


def to_sleep(engine: Engine) -> Event:
    return Evict(1)


def slept(engine: Engine) -> Event:
    return Slept(engine.epoch)


def sleepless(engine: Engine) -> Event:
    return SleepFailed(engine.epoch, "it keeps its memory")


def woken(engine: Engine) -> Event:
    return Woken(engine.epoch)


def not_woken(engine: Engine) -> Event:
    return WakeFailed(engine.epoch, "HTTP 500")


def progress(engine: Engine) -> Event:
    return Progressed(engine.epoch)


def token(engine: Engine) -> Event:
    return ProbeOk(engine.epoch)


def no_token(engine: Engine) -> Event:
    return ProbeFailed(engine.epoch, "silence")


def no_answer(engine: Engine) -> Event:
    return ProbeFailed(engine.epoch, "HTTP 500", listens=True)


def end(engine: Engine) -> Event:
    return Exited(engine.generation, CRASH)


def no_hub(engine: Engine) -> Event:
    return Exited(engine.generation, AWAY)


def hopeless_end(engine: Engine) -> Event:
    return Exited(engine.generation, HOPELESS)


def rings(timer: Timer) -> Happening:
    return lambda engine: TimerFired(engine.epoch, timer)


def exactly(event: Event) -> Happening:
    """An event whose epoch or generation was fixed long ago."""
    return lambda engine: event


def lives(*happenings: Happening, policy: Policy = POLICY) -> list[Engine]:
    """The engine after each happening."""
    engines = [Engine()]
    for happening in happenings:
        engines.append(step(engines[-1], happening(engines[-1]), policy)[0])
    return engines[1:]


def story(*happenings: Happening, policy: Policy = POLICY) -> list[tuple[State, tuple[Effect, ...]]]:
    """State and effects after each happening."""
    engine, told = Engine(), []
    for happening in happenings:
        engine, effects = step(engine, happening(engine), policy)
        told.append((engine.state, effects))
    return told


def spawned(generation: int) -> tuple[State, tuple[Effect, ...]]:
    return State.STARTING, (Spawn(generation), SetTimer(Timer.STALL, 300), Probe(STARTUP_PROBE_INTERVAL_S))


def backed_off(seconds: float) -> tuple[State, tuple[Effect, ...]]:
    return State.BACKOFF, (SetTimer(Timer.BACKOFF, seconds, BACKOFF_JITTER),)


KILLED: tuple[State, tuple[Effect, ...]] = (State.STOPPING, (Kill(), SetTimer(Timer.STOP, 20)))
REPLACED: tuple[State, tuple[Effect, ...]] = (State.STOPPING, (Kill(examine=True), SetTimer(Timer.STOP, 20)))
ASKED_TO_END: tuple[State, tuple[Effect, ...]] = (State.STOPPING, (Terminate(), SetTimer(Timer.STOP, 20)))
BECAME_READY: tuple[State, tuple[Effect, ...]] = (State.READY, (SetTimer(Timer.STABLE, 120), Probe(30)))
NOTHING: tuple[Effect, ...] = ()


# ── stories ──


def test_a_normal_life() -> None:
    assert story(load, no_token, progress, token, token, rings(Timer.STABLE), token, unload, end) == [
        spawned(1),
        (State.STARTING, (Probe(STARTUP_PROBE_INTERVAL_S),)),
        (State.STARTING, (SetTimer(Timer.STALL, 300),)),
        BECAME_READY,
        (State.READY, (Probe(30),)),
        (State.READY, NOTHING),
        (State.READY, (Probe(30),)),
        ASKED_TO_END,
        (State.STOPPED, NOTHING),
    ]


def test_a_crash_is_followed_by_a_pause_and_another_try() -> None:
    assert story(load, token, end, rings(Timer.BACKOFF), token)[2:] == [backed_off(1), spawned(2), BECAME_READY]
    last = lives(load, token, end, rings(Timer.BACKOFF), token)[-1]
    assert (last.crashes, last.restarts, last.verdict) == (1, 1, CRASH)


def test_a_crash_is_forgiven_only_after_ready_has_lasted() -> None:
    life = (load, token, end, rings(Timer.BACKOFF), token)
    assert lives(*life)[-1].crashes == 1
    assert lives(*life, rings(Timer.STABLE))[-1].crashes == 0
    assert lives(*life, rings(Timer.STABLE), end)[-1].crashes == 1


def test_the_pauses_double_up_to_a_limit_and_start_anew_when_forgiven() -> None:
    patient = replace(POLICY, restart_limit=100, backoff_max_s=5)
    crash = (rings(Timer.BACKOFF), token, end)
    pauses = [
        effects
        for state, effects in story(load, end, *crash * 4, *crash[:2], rings(Timer.STABLE), end, policy=patient)
        if state is State.BACKOFF
    ]
    assert pauses == [(SetTimer(Timer.BACKOFF, seconds, BACKOFF_JITTER),) for seconds in (1, 2, 4, 5, 5, 1)]


def test_a_model_that_dies_on_every_first_request_ends_in_failed() -> None:
    crash = (token, end, rings(Timer.BACKOFF))
    told = story(load, *crash * 3)
    assert [state for state, _ in told[-2:]] == [State.FAILED, State.FAILED]
    assert lives(load, *crash * 3)[-1].crashes == POLICY.restart_limit + 1
    assert told[-1] == (State.FAILED, NOTHING)


def test_a_night_without_the_hub_is_waited_for_and_costs_the_model_none_of_its_tries() -> None:
    night = (load, no_hub, *(rings(Timer.BACKOFF), no_hub) * 40)
    pauses = [effects for state, effects in story(*night) if state is State.BACKOFF]
    assert len(pauses) == 41
    assert pauses[:3] == [(SetTimer(Timer.BACKOFF, seconds, BACKOFF_JITTER),) for seconds in (1, 2, 4)]
    assert pauses[-1] == (SetTimer(Timer.BACKOFF, POLICY.backoff_max_s, BACKOFF_JITTER),)
    morning = (*night, rings(Timer.BACKOFF))
    assert lives(*night)[-1].verdict == AWAY
    assert (lives(*morning, end)[-1].crashes, lives(*morning, end)[-1].setbacks) == (1, 0)
    assert story(*morning, end)[-1] == backed_off(1)
    assert story(*morning, token, end, rings(Timer.BACKOFF), no_hub)[-1] == backed_off(1), "another night"
    assert story(*morning, hopeless_end)[-1] == (State.FAILED, NOTHING)


def test_a_hub_that_wants_to_be_left_alone_is() -> None:
    def busy_hub(engine: Engine) -> Event:
        return Exited(engine.generation, replace(AWAY, retry_after_s=300.0))

    assert story(load, busy_hub)[-1] == backed_off(300)
    assert story(load, busy_hub, rings(Timer.BACKOFF), end)[-1] == backed_off(1)


def test_without_restarts_the_first_crash_is_the_last() -> None:
    assert story(load, end, policy=replace(POLICY, restart_limit=0))[-1] == (State.FAILED, NOTHING)


def test_what_cannot_get_better_is_not_tried_again() -> None:
    last = lives(load, hopeless_end)[-1]
    assert (last.state, last.verdict) == (State.FAILED, HOPELESS)


def test_a_failed_model_is_loaded_again_when_asked_with_all_its_tries() -> None:
    for ask in (load, restart):
        last = lives(load, hopeless_end, ask)[-1]
        assert (last.state, last.generation, last.crashes, last.restarts) == (State.STARTING, 2, 0, 0)
    assert story(load, hopeless_end, unload)[-1] == (State.STOPPED, NOTHING)


def test_an_operators_restart_is_no_crash() -> None:
    assert story(load, token, restart, end)[2:] == [ASKED_TO_END, spawned(2)]
    last = lives(load, token, restart, end)[-1]
    assert (last.crashes, last.restarts, last.verdict) == (0, 0, None)


def test_unload_during_the_start() -> None:
    # vLLM ignores SIGTERM in parts of its start: it is not asked.
    assert story(load, unload, token, progress, end)[1:] == [
        KILLED,
        (State.STOPPING, NOTHING),
        (State.STOPPING, NOTHING),
        (State.STOPPED, NOTHING),
    ]


def test_load_during_the_stop_starts_a_new_one_once_the_old_one_is_gone() -> None:
    assert story(load, token, unload, load, end)[2:] == [ASKED_TO_END, (State.STOPPING, NOTHING), spawned(2)]


def test_the_last_wish_during_a_stop_counts() -> None:
    assert lives(load, token, unload, load, unload, end)[-1].state is State.STOPPED
    assert lives(load, token, restart, unload, end)[-1].state is State.STOPPED
    assert lives(load, token, unload, restart, end)[-1].state is State.STARTING


def test_load_during_a_pause_cuts_it_short() -> None:
    last = lives(load, end, load)[-1]
    assert (last.state, last.crashes, last.restarts) == (State.STARTING, 0, 0)
    assert story(load, end, unload)[-1] == (State.STOPPED, NOTHING)


def test_loading_what_is_loaded_changes_nothing() -> None:
    for before in ((load,), (load, token), (load, token, no_token)):
        *_, engine = lives(*before)
        assert step(engine, Load(), POLICY) == (engine, ())


def test_a_late_start_up_timer_does_not_kill_a_stopping_engine() -> None:
    late = exactly(TimerFired(epoch=1, timer=Timer.STALL))
    assert story(load, token, late, unload, late)[2:] == [
        (State.READY, NOTHING),
        ASKED_TO_END,
        (State.STOPPING, NOTHING),
    ]


def test_a_late_token_of_the_dead_does_not_make_its_successor_ready() -> None:
    late = exactly(ProbeOk(epoch=1))
    assert story(load, end, rings(Timer.BACKOFF), late)[-1] == (State.STARTING, NOTHING)


def test_a_late_exit_of_the_dead_does_not_end_its_successor() -> None:
    late = exactly(Exited(1, CRASH))
    assert story(load, end, rings(Timer.BACKOFF), late, token, late)[3:] == [
        (State.STARTING, NOTHING),
        BECAME_READY,
        (State.READY, NOTHING),
    ]


def test_an_engine_that_hangs_becomes_unhealthy_and_is_replaced() -> None:
    assert story(load, token, no_token, no_token, no_token, end, rings(Timer.BACKOFF))[2:] == [
        (State.UNHEALTHY, (Probe(1),)),
        (State.UNHEALTHY, (Probe(1),)),
        REPLACED,
        backed_off(1),
        spawned(2),
    ]
    *_, stopping = lives(load, token, no_token, no_token, no_token)
    assert stopping.verdict is not None
    assert stopping.verdict.cause == "hung"
    assert "hangs: silence (3 health checks in a row)" in stopping.verdict.message


def test_a_certain_hang_needs_no_second_check() -> None:
    def certain(engine: Engine) -> ProbeFailed:
        return ProbeFailed(engine.epoch, "silence", certain=True)

    assert story(load, token, certain, end)[2:] == [REPLACED, backed_off(1)]
    assert story(load, token, no_token, certain)[-1] == REPLACED


def test_an_engine_that_recovers_is_ready_again_and_counts_from_the_beginning() -> None:
    recovered = (load, token, no_token, no_token, token)
    assert story(*recovered)[-1] == BECAME_READY
    assert [each.state for each in lives(*recovered, no_token, no_token)[-2:]] == [State.UNHEALTHY] * 2


def test_a_threshold_of_one_replaces_at_once() -> None:
    impatient = replace(POLICY, failure_threshold=1)
    assert story(load, token, no_token, policy=impatient)[-1] == REPLACED
    verdict = lives(load, token, no_token, policy=impatient)[-1].verdict
    assert verdict is not None
    assert "hangs: silence" in verdict.message


def test_a_sick_engine_is_not_asked_but_killed() -> None:
    # vLLM hangs on SIGTERM when its engine core is stopped (engine-facts.md).
    assert story(load, token, no_token, unload)[-1] == KILLED
    assert story(load, token, no_token, restart)[-1] == KILLED


def test_a_starting_engine_that_answers_without_a_token_has_stopped_moving() -> None:
    assert story(load, no_token, progress)[-1] == (State.STARTING, (SetTimer(Timer.STALL, 300),))
    assert story(load, no_answer, progress)[-1] == (State.STARTING, ())
    assert story(load, no_answer, end, rings(Timer.BACKOFF), progress)[-1] == (
        State.STARTING,
        (SetTimer(Timer.STALL, 300),),
    )


def test_a_start_without_progress_is_ended_and_tried_again() -> None:
    assert story(load, rings(Timer.STALL), end)[1:] == [REPLACED, backed_off(1)]
    stopping = lives(load, rings(Timer.STALL))[-1]
    assert stopping.verdict is not None
    assert (stopping.verdict.cause, stopping.crashes) == ("stalled", 1)


def test_the_exit_of_a_sick_engine_is_not_a_second_crash() -> None:
    last = lives(load, rings(Timer.STALL), end)[-1]
    assert last.crashes == 1
    assert last.verdict is not None
    assert last.verdict.cause == "stalled"


def test_killing_is_repeated_until_the_exit() -> None:
    assert story(load, token, unload, *[rings(Timer.STOP)] * 3, end)[2:] == [
        ASKED_TO_END,
        KILLED,
        KILLED,
        KILLED,
        (State.STOPPED, NOTHING),
    ]


# ── out of memory and back ──

DOZES: tuple[State, tuple[Effect, ...]] = (State.DOZING, (PutToSleep(1), SetTimer(Timer.STALL, 300)))
WAKES: tuple[State, tuple[Effect, ...]] = (State.STARTING, (Wake(), SetTimer(Timer.STALL, 300)))


def test_an_engine_sleeps_and_wakes_with_a_token() -> None:
    assert story(load, token, to_sleep, slept, wanted, woken, token)[2:] == [
        DOZES,
        (State.ASLEEP, NOTHING),
        WAKES,
        (State.STARTING, (Probe(0.0),)),
        BECAME_READY,
    ]
    assert {each.generation for each in lives(load, token, to_sleep, slept, wanted, woken, token)} == {1}


def test_who_asks_while_it_falls_asleep_has_it_woken_at_once() -> None:
    assert story(load, token, to_sleep, wanted, slept)[3:] == [(State.DOZING, NOTHING), WAKES]


def test_an_engine_that_does_not_sleep_ends_since_its_memory_is_wanted() -> None:
    assert story(load, token, to_sleep, sleepless, end)[3:] == [KILLED, (State.STOPPED, NOTHING)]
    assert story(load, token, to_sleep, rings(Timer.STALL), end)[3:] == [KILLED, (State.STOPPED, NOTHING)]
    last = lives(load, token, to_sleep, sleepless, end)[-1]
    assert (last.crashes, last.restarts, last.verdict, last.evicted) == (0, 0, None, True)


def test_an_engine_that_does_not_wake_is_replaced() -> None:
    told = story(load, token, to_sleep, slept, wanted, not_woken, end, rings(Timer.BACKOFF))
    assert told[-3:] == [REPLACED, backed_off(1), spawned(2)]
    assert story(load, token, to_sleep, slept, wanted, rings(Timer.STALL), end)[-2:] == [REPLACED, backed_off(1)]


def test_an_engine_that_dies_in_its_sleep_is_not_started_for_nobody() -> None:
    last = lives(load, token, to_sleep, slept, end)[-1]
    assert (last.state, last.verdict, last.evicted) == (State.STOPPED, CRASH, True)
    assert story(load, token, to_sleep, slept, end, wanted)[-1] == spawned(2)
    assert story(load, token, to_sleep, wanted, end)[-1] == backed_off(1), "somebody waits for it: that is a crash"


def test_what_is_taken_out_of_memory_is_asked_to_end_and_comes_back_when_wanted() -> None:
    assert story(load, token, evict, end, wanted)[2:] == [ASKED_TO_END, (State.STOPPED, NOTHING), spawned(2)]
    assert story(load, token, evict, wanted, end)[2:] == [ASKED_TO_END, (State.STOPPING, NOTHING), spawned(2)]
    assert story(load, token, unload, end, wanted)[-1] == (State.STOPPED, NOTHING), "an administrator said no"
    assert story(load, token, evict, end, unload, wanted)[-1] == (State.STOPPED, NOTHING), "and afterwards as well"


def test_a_sleeping_engine_can_be_unloaded_and_renewed() -> None:
    asleep = (load, token, to_sleep, slept)
    assert story(*asleep, unload, end)[-2:] == [KILLED, (State.STOPPED, NOTHING)]
    assert story(*asleep, restart, end)[-2:] == [KILLED, spawned(2)]
    assert story(*asleep, evict, end, wanted)[-3:] == [KILLED, (State.STOPPED, NOTHING), spawned(2)]


def test_a_request_forgives_nothing() -> None:
    crash = (token, end, rings(Timer.BACKOFF))
    assert lives(load, *crash, wanted)[-1].crashes == 1
    assert lives(load, end, rings(Timer.BACKOFF), evict, end, wanted)[-1].crashes == 0, "it was not the model's fault"


def test_who_has_ordered_a_model_waits_until_it_is_there() -> None:
    ordered = lives(exactly(Load(ordered=True)), end, rings(Timer.BACKOFF), token)
    assert [each.ordered for each in ordered] == [True, True, True, False]
    assert [each.ordered for each in lives(load, token, restart, end, token)] == [False, False, True, True, False]
