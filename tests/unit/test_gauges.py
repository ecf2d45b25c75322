"""What vLLM's metrics say of an engine's load."""

import pytest

from vllmd.engine.gauges import Gauges, read

RECORDED = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="smollm2"} 3.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="smollm2"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="smollm2",reason="capacity"} 70.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="smollm2"} 0.005494505494505475
"""


def test_a_recording_is_read() -> None:
    assert read(RECORDED) == Gauges(3, 1, 0.005494505494505475)


def test_of_several_engines_requests_add_up_and_caches_are_averaged() -> None:
    second = RECORDED.replace(b'engine="0"', b'engine="1"').replace(b"0.005494505494505475", b"0.5")
    assert read(RECORDED.replace(b"0.005494505494505475", b"1.0") + second) == Gauges(6, 2, 0.75)


def test_a_models_name_may_hold_anything() -> None:
    assert read(RECORDED.replace(b"smollm2", b"a}b 9.0")) == Gauges(3, 1, 0.005494505494505475)


@pytest.mark.parametrize("usage", [b"-0.1", b"1e-9"])
def test_a_cache_is_never_less_than_empty(usage: bytes) -> None:
    gauges = read(RECORDED.replace(b"0.005494505494505475", usage))
    assert gauges
    assert 0 <= gauges.kv_cache_usage < 0.001


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"vllm:kv_cache_usage_perc NaN\n", b"vllm:kv_cache_usage_perc 1e+e\n"]
)
def test_what_is_no_gauge_says_nothing(page: bytes) -> None:
    assert read(page) is None
