"""Several models in a memory that has room for one: who waits gets it, in turns, and nobody is cut off."""

from typing import Any

from daemons import Daemon

CHAT = "/v1/chat/completions"
ONE = {"max_models": 1, "turn_s": 3600}


def models(daemon: Daemon, **of_all: Any) -> dict[str, Any]:
    return {"models": {"a": {**daemon.tiny(), "default": True, **of_all}, "b": {**daemon.tiny(), **of_all}}}


def test_smoke() -> None:
    daemon = Daemon(memory=ONE)
    daemon.configure({}, {"memory": ONE, **models(daemon, load="demand")})
    try:
        daemon.start(ready=False)
        assert daemon.model("a").state == "stopped"
        for name in ("a", "b", "a"):
            status, body = daemon.fetch(CHAT, "POST", {"model": name, "messages": [{"role": "user", "content": "x"}]})
            print(status, body)
            print([(each.name, each.state, each.claim_bytes, each.generation) for each in daemon.status().models])
            assert status == 200
    finally:
        print(daemon.log)
        daemon.see_to_its_end()
