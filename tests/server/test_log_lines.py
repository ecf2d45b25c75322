"""vllmd's log on stderr, where there is no journal: whose line it is, and about which request."""

import json
import os
from typing import Any

from daemons import Daemon, running
from waiting import until

STREAM = {"messages": [{"role": "user", "content": "hello"}], "stream": True}


def told(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.splitlines()]


async def test_json_lines_say_what_they_are_about() -> None:
    with running(Daemon(log={"format": "json"}, knobs={"tokens_per_s": 5, "tokens": 10_000})) as daemon:
        asked = await daemon.unix.open("/v1/chat/completions", STREAM, headers={"X-Request-Id": "mine"})
        await asked.until(b"tok1")
        assert daemon.fetch("/api/requests/mine", "DELETE")[0] == 202
        await asked.end()
        await asked.leave()
        daemon.order("restart", wait=True)
        await until(lambda: any(each.get("generation") == "2" for each in told(daemon)), "the second engine")
        lines = told(daemon)
        engine = [each for each in lines if each.get("stream") == "engine"]
        assert {(each["model"], each["generation"]) for each in engine} == {("tiny", "1"), ("tiny", "2")}
        assert any("Application startup complete" in each["message"] for each in engine)
        (ready, *_) = [each for each in lines if each["message"] == "tiny: starting → ready"]
        assert "stream" not in ready
        assert "request_id" not in ready
        (cancelled,) = [each for each in lines if "cancelled by" in each["message"]]
        assert cancelled["uid"] == str(os.getuid())
        assert cancelled["request_id"] not in ("", "mine"), "it was logged for the request that cancelled"


async def test_an_error_of_the_engine_is_one_of_the_log_and_its_traceback_is_one_entry() -> None:
    knobs = {"start_end": "exit:1", "start_last": "ValueError: out of luck"}
    daemon = Daemon(log={"format": "json"}, knobs=knobs, supervision={"restart_limit": 0})
    with running(daemon, ready=False):
        daemon.wait_for("failed")
        (verdict,) = [each for each in told(daemon) if each["level"] == "error" and "stream" not in each]
        assert "out of luck" in verdict["message"]
        assert (verdict["model"], verdict["generation"]) == ("tiny", "1")
