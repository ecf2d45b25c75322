"""The configuration read anew: what is wrong changes nothing, what is right changes only what it is about."""

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from daemons import Daemon, running
from service_manager import Manager, Service
from waiting import alive, until, until_sync

PROMPT = "/api/prompt"
CHAT = "/v1/chat/completions"
STREAM = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


@contextmanager
def started(**how: Any) -> Iterator[Daemon]:
    with running(Daemon(**how)) as daemon:
        yield daemon


def reload(daemon: Daemon) -> list[Mapping[str, Any]]:
    status, body = daemon.fetch("/api/reload", "POST")
    assert status == 200, body
    return list(body["changes"])


def keys(changes: list[Mapping[str, Any]]) -> list[str]:
    return [each["key"] for each in changes]


async def test_a_key_that_applies_at_once_does_and_the_engine_never_notices() -> None:
    with started() as daemon:
        engine = daemon.engine_pid
        assert reload(daemon) == []
        daemon.configure({}, {"defaults": {"max_tokens": 3}, "queue": {"limit": 0}})
        plan = daemon.fetch("/api/plan")[1]["changes"]
        await daemon.unix.ask(PROMPT, {"prompt": "x"})
        assert daemon.requests()[-1]["body"]["max_tokens"] == 512, "a plan changes nothing"
        assert reload(daemon) == plan
        assert keys(plan) == ["defaults.max_tokens", "queue.limit"]
        await daemon.unix.ask(PROMPT, {"prompt": "x"})
        assert daemon.requests()[-1]["body"]["max_tokens"] == 3
        assert reload(daemon) == []
        assert daemon.engine_pid == engine
        assert daemon.model().state == "ready"
        assert "reload: defaults.max_tokens: 512 → 3" in daemon.log
        await assert_limit_holds(daemon)


async def assert_limit_holds(daemon: Daemon) -> None:
    """With `queue.limit = 0` nobody waits for an engine that starts."""
    daemon.control(ready_after_s=30)
    daemon.order("restart")
    await until(lambda: daemon.model().state == "starting", "the engine to start")
    assert (await daemon.unix.ask(PROMPT, {"prompt": "x"})).status == 503


def test_a_file_with_mistakes_changes_nothing_and_says_which() -> None:
    with started() as daemon:
        engine = daemon.engine_pid
        daemon.configure({}, {"defaults": {"max_tokens": 3, "temperatur": 1}, "queue": {"limit": "many"}})
        for path, method in (("/api/plan", "GET"), ("/api/reload", "POST")):
            status, body = daemon.fetch(path, method)
            assert status == 500
            assert body["error"]["code"] == "config_error"
            assert "defaults.temperatur: unknown key (did you mean 'temperature'?)" in body["error"]["message"]
            assert "queue.limit: expected a whole number" in body["error"]["message"]
        daemon.signal(signal.SIGHUP)
        until_sync(lambda: daemon.log.count("reload: nothing was changed") >= 4, "the signal to be answered in the log")
        daemon.config.unlink()
        assert daemon.fetch("/api/reload", "POST")[0] == 500
        daemon.configure({}, {})
        assert reload(daemon) == []
        assert daemon.engine_pid == engine


def test_what_takes_a_new_vllmd_is_named_and_stays_named() -> None:
    with started() as daemon:
        door = daemon.port
        daemon.configure({}, {"listen": {"tcp": "127.0.0.1:1"}, "defaults": {"max_tokens": 3}})
        first = reload(daemon)
        assert keys(first) == ["listen.tcp", "defaults.max_tokens"]
        assert first[0]["applies"] == "with a new vllmd"
        assert keys(reload(daemon)) == ["listen.tcp"], "until it is done"
        assert daemon.status().addresses[0].endswith(f":{door}")
        assert "but only after:  systemctl restart vllmd" in daemon.log


async def test_with_more_places_for_each_identity_who_waited_for_one_goes_at_once() -> None:
    with started(knobs={"tokens": 1000, "tokens_per_s": 20}, limits={"running": 1}) as daemon:
        first = await daemon.unix.open(CHAT, STREAM)
        await until(lambda: daemon.model().running == 1, "one to run")
        second = await daemon.unix.open(CHAT, STREAM)
        await until(lambda: daemon.model().held == 1, "one to wait for it")
        daemon.configure({}, {"limits": {"running": 2}})
        assert keys(reload(daemon)) == ["limits.running"]
        await until(lambda: (daemon.model().running, daemon.model().held) == (2, 0), "both to run")
        for each in (first, second):
            await each.leave()


async def test_an_engine_that_is_to_be_another_is_replaced_when_its_requests_have_ended() -> None:
    with started(knobs={"tokens": 60, "tokens_per_s": 20}) as daemon:
        engine = daemon.engine_pid
        running = await daemon.unix.open(CHAT, STREAM)
        await running.until(b"tok1")
        daemon.configure({"max-model-len": 99}, {})
        (change,) = reload(daemon)
        assert (change["key"], change["models"]) == ("models.tiny.args.max-model-len", ["tiny"])
        waiting = await daemon.unix.open(CHAT, STREAM)
        await until(lambda: (daemon.model().running, daemon.model().held) == (1, 1), "the second to be held")
        assert daemon.engine_pid == engine
        for each in (running, waiting):
            await each.end()
            await each.leave()
            assert each.whole
        assert not running.header("X-Vllmd-Continued")
        assert daemon.model().generation == 2
        assert daemon.model().restarts == 0
        assert not alive(engine)
        assert daemon.journal("start")[-1]["argv"].count("--max-model-len") == 1


async def test_a_change_that_is_taken_back_while_requests_run_costs_no_engine() -> None:
    with started(knobs={"tokens": 60, "tokens_per_s": 20}) as daemon:
        engine = daemon.engine_pid
        running = await daemon.unix.open(CHAT, STREAM)
        await running.until(b"tok1")
        for args in ({"max-model-len": 99}, {}):
            daemon.configure(args, {})
            assert keys(reload(daemon)) == ["models.tiny.args.max-model-len"]
        waiting = await daemon.unix.open(CHAT, STREAM)
        for each in (running, waiting):
            await each.end()
            await each.leave()
            assert each.whole
        assert (daemon.engine_pid, daemon.model().generation) == (engine, 1)


async def test_who_does_not_end_in_time_is_continued_by_the_new_engine() -> None:
    with started(knobs={"tokens": 200, "tokens_per_s": 20}, relay={"drain_s": 0.5}) as daemon:
        running = await daemon.unix.open(CHAT, STREAM)
        await running.until(b"tok1")
        daemon.configure({"max-model-len": 99}, {"relay": {"drain_s": 0.5}})
        reload(daemon)
        await until(lambda: daemon.model().generation == 2, "the engine to be replaced")
        daemon.control()
        await running.end()
        await running.leave()
        assert running.whole
        assert dict(running.trailers)["x-vllmd-continued"] == "1"


def test_models_come_and_go_and_the_others_stay() -> None:
    with started() as daemon:
        engine, tiny = daemon.engine_pid, {**daemon.tiny(), "default": True}
        daemon.configure({}, {"models": {"tiny": tiny, "more": daemon.tiny()}})
        assert keys(reload(daemon)) == ["models.more"]
        until_sync(lambda: daemon.model("more").state == "ready", "the new model")
        more = daemon.model("more").pid
        assert more
        daemon.configure({}, {"models": {"tiny": tiny}})
        assert keys(reload(daemon)) == ["models.more"]
        until_sync(lambda: not alive(more), "the engine of the model that is gone to have ended")
        assert [each.name for each in daemon.status().models] == ["tiny"]
        assert daemon.fetch(PROMPT, "POST", {"prompt": "x", "model": "more"})[0] == 404
        assert daemon.engine_pid == engine


async def test_a_model_that_comes_back_waits_for_its_engine_that_is_going() -> None:
    with started(knobs={"tokens": 60, "tokens_per_s": 20}) as daemon:
        tiny = {**daemon.tiny(), "default": True}
        without, both = {"models": {"tiny": tiny}}, {"models": {"tiny": tiny, "more": daemon.tiny()}}
        daemon.configure({}, both)
        reload(daemon)
        await until(lambda: daemon.model("more").state == "ready", "the model")
        engine = daemon.model("more").pid
        assert engine
        running = await daemon.unix.open(CHAT, {**STREAM, "model": "more"})
        await running.until(b"tok1")
        for models in (without, both):
            daemon.configure({}, models)
            assert keys(reload(daemon)) == ["models.more"]
        assert alive(engine)
        await running.end()
        await running.leave()
        assert running.whole
        await until(lambda: daemon.model("more").state == "ready", "the model again")
        assert not alive(engine)
        assert daemon.model("more").restarts == 0


def test_an_unloaded_model_stays_unloaded_and_a_failed_one_is_tried_again() -> None:
    with started() as daemon:
        assert daemon.order("unload", wait=True)[0] == 200
        daemon.configure({"max-model-len": 99}, {})
        assert keys(reload(daemon)) == ["models.tiny.args.max-model-len"]
        assert daemon.model().state == "stopped"
        daemon.control(start_end="exit:1", start_last="ValueError: out of luck")
        daemon.order("load")
        daemon.wait_for("failed")
        daemon.control()
        daemon.configure({"max-model-len": 98}, {})
        reload(daemon)
        daemon.wait_for("ready")
        assert daemon.journal("start")[-1]["argv"].count("98") == 1


def test_systemd_is_told_when_it_begins_and_when_it_is_over() -> None:
    with Manager().reading() as manager:
        service = Service(manager)
        try:
            service.start()
            ready = manager.heard.count("READY=1")
            service.daemon.signal(signal.SIGHUP)
            until_sync(lambda: manager.heard.count("READY=1") > ready, "READY=1")
            began = manager.heard.index("RELOADING=1")
            assert manager.heard[began + 1].startswith("MONOTONIC_USEC=")
            assert "READY=1" in manager.heard[began:]
        finally:
            service.see_to_its_end()
