"""vllmd.service under a real systemd: what READY, STATUS, the watchdog and the limits do."""

import pytest
from system.service import Service
from waiting import until_sync

pytestmark = pytest.mark.timeout(1800)


def test_it_is_active_only_after_a_token(service: Service) -> None:
    service.stop()
    service.control(fault="hang")  # the engine listens and says that it is healthy, and no token comes out of it
    service.begin()
    until_sync(lambda: "Application startup complete" in service.log(), "vLLM to call itself ready")
    until_sync(lambda: "phase" in service.machine.run("vllmctl", "status", "--json").stdout, "the doors to be open")
    assert service.show("ActiveState") == "activating"
    service.control()
    service.wait_for("ActiveState", "active")


def test_systemctl_status_says_how_far_the_start_is(service: Service) -> None:
    service.stop()
    service.control(ready_after_s=12)
    service.begin()
    until_sync(lambda: "loading weights" in service.show("StatusText"), "the weights to be loaded")
    assert service.show("ActiveState") == "activating"
    service.control()
    service.wait_for("StatusText", "tiny: ready")


def test_a_start_may_take_longer_than_its_timeout_while_something_moves(service: Service) -> None:
    service.stop()
    service.control(ready_after_s=12)
    with service.drop_in("TimeoutStartSec=8s"):  # in which vllmd itself must have started
        service.start()
        assert service.show("Result") == "success"
        took_us = int(service.show("ActiveEnterTimestampMonotonic")) - int(
            service.show("InactiveExitTimestampMonotonic")
        )
        assert took_us > 11_000_000


def test_a_hung_loop_is_killed_by_the_watchdog_and_serves_again(service: Service) -> None:
    with service.drop_in("WatchdogSec=5s\nTimeoutAbortSec=1s\nRestartSec=100ms"):
        service.restart()
        hung = service.pid
        service.machine.kill(hung, "STOP")
        until_sync(lambda: service.pid not in (0, hung), "another one to be started", 60)
        assert "Watchdog timeout" in service.machine.journal("-u", "vllmd")
        service.wait_for("ActiveState", "active")
        assert service.model().state == "ready"


def test_kill_9_of_a_vllmd_that_is_not_started_again_leaves_no_process(service: Service) -> None:
    service.stop()
    service.control(tree=1, stray=1, term="ignore", start_term="ignore")
    with service.drop_in("Restart=no"):
        service.start()
        until_sync(lambda: len(service.engine()) == 5, "guard, vLLM, core, worker and the stray to be there")
        service.machine.kill(service.pid, "KILL")
        until_sync(lambda: not service.engine(), "all of them to be gone")
        assert service.show("Result") == "signal"


def test_crashes_of_engines_never_count_as_vllmd_s(service: Service) -> None:
    main, restarts = service.pid, service.show("NRestarts")
    for _ in range(3):
        leader = service.model().pid
        service.machine.kill(leader or 0, "KILL")
        until_sync(lambda: service.model().pid not in (None, leader), "another engine")  # noqa: B023 (called at once)
    assert (service.pid, service.show("NRestarts")) == (main, restarts)


def test_a_mistake_in_the_configuration_is_told_and_tried_no_more(service: Service) -> None:
    service.stop()
    service.configure(queue={"limt": 3})
    assert service.machine.run("systemctl", "start", "vllmd").returncode != 0
    assert "queue.limt" in service.log()
    assert "limit" in service.log()
    assert (service.show("ActiveState"), service.show("ExecMainStatus")) == ("failed", "2")


def test_a_client_that_waits_for_a_broken_service_is_refused_in_the_end(service: Service) -> None:
    service.stop()
    service.configure(queue={"limt": 3})
    # The circle of a waiting client and a start that fails ends at TriggerLimitBurst=, and the socket closes.
    with service.machine.connect(8080) as waiting:
        waiting.sendall(b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n")
        until_sync(lambda: service.machine.show("vllmd.socket", "ActiveState") == "failed", "the circle to end", 100)
    service.configure()
    service.machine("systemctl", "restart", "vllmd")
    assert service.machine.show("vllmd.socket", "ActiveState") == "active"
    service.machine("systemctl", "daemon-reload")  # forgets how often the socket was triggered lately
