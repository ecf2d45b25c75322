"""The page for Prometheus: names and meanings of all numbers, by Prometheus' conventions. Pure.

Its names are a promise: dashboards and alerts are written against them. Nobody imports it before somebody asks for the
page, since Prometheus' library is as large as a small daemon.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from vllmd import __version__
from vllmd.engine.supervisor import PROBE_RESULTS
from vllmd.lifecycle import State
from vllmd.server.exposition import merged
from vllmd.server.snapshot import ServedNow, Snapshot, Values

OF_MODEL = ("model",)

_TIMES: tuple[tuple[str, str, Callable[[ServedNow], Values]], ...] = (
    (
        "vllmd_queue_seconds",
        "How long a request waited for the engine or for a place in it; none for who was refused at once.",
        lambda each: each.queue,
    ),
    (
        "vllmd_time_to_first_token_seconds",
        "From a request's arrival to the first token of its stream, waits included.",
        lambda each: each.first_token,
    ),
    (
        "vllmd_inter_token_seconds",
        "Time between two tokens of a stream, the mean of each answer.",
        lambda each: each.inter_token,
    ),
    (
        "vllmd_request_duration_seconds",
        "From a request's arrival to its end; none for who was refused at once.",
        lambda each: each.duration,
    ),
)


def render(snapshot: Snapshot, engines: Mapping[str, str], *, is_open: bool) -> tuple[str, bytes]:
    """The page and its media type.

    Args:
        snapshot: vllmd's own numbers.
        engines: model → its engine's page.
        is_open: whether to write OpenMetrics instead of Prometheus' text.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers([*families(snapshot), *merged(engines)]))
    ProcessCollector(registry=registry)
    if is_open:
        # Its other ways to write names make `vllm_` of `vllm:`, though a colon has always been good.
        page = openmetrics.generate_latest(registry, escaping=openmetrics.ALLOWUTF8)
        return openmetrics.CONTENT_TYPE_LATEST, page
    return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)


class _Numbers(Collector):
    """What was collected already."""

    def __init__(self, numbers: Iterable[Metric]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        return self._numbers


def families(snapshot: Snapshot) -> Iterator[Metric]:
    """vllmd's own."""
    yield InfoMetricFamily("vllmd", "The version of vllmd.", {"version": __version__})
    yield from _of_engines(snapshot)
    yield from _of_now(snapshot)
    yield from _of_requests(snapshot)
    yield from _of_served(snapshot.served)
    yield from _of_times(snapshot.served)
    lag = HistogramMetricFamily(
        "vllmd_event_loop_lag_seconds", "How late the event loop was, looked at while requests are under way."
    )
    lag.add_metric([], *snapshot.lag)
    yield lag


def _of_engines(snapshot: Snapshot) -> Iterator[Metric]:
    states = _gauge("vllmd_model_state", "1 for the state in which the model's engine is.", "model", "state")
    told = _gauge("vllmd_engine_scrape_ok", "Whether the engine has told its own numbers for this page.", "model")
    probes = _counter("vllmd_probes_total", "Health checks of the engine by result.", "model", "result")
    for name, model in snapshot.models.items():
        for state in State:
            states.add_metric([name, state.value], float(state is model.state))
        for result in PROBE_RESULTS:
            probes.add_metric([name, result], model.probes.get(result, 0))
        told.add_metric([name], float(model.has_told))
    restarts = _counter(
        "vllmd_engine_restarts_total", "Restarts after failures, by the cause in the verdict.", "model", "cause"
    )
    for (name, cause), count in snapshot.restarts.items():
        restarts.add_metric([name, cause], count)
    yield from (states, told, probes, restarts)
    yield _histogram("vllmd_time_to_ready_seconds", "From an engine's start to its first token.", snapshot.ready)
    yield _histogram(
        "vllmd_time_to_wake_seconds",
        "From the moment in which a sleeping engine is wanted to its first token, waits for memory included.",
        snapshot.awake,
    )


def _of_now(snapshot: Snapshot) -> Iterator[Metric]:
    running = _gauge("vllmd_requests_running", "Requests that the engine works on.", "model")
    held = _gauge("vllmd_requests_held", "Requests that wait for the engine or for a place in it.", "model")
    streams = _gauge("vllmd_streams_open", "Requests under way whose answers come as events.", "model")
    places = _gauge("vllmd_places", "Requests that the engine works on at once, at most.", "model")
    for name, model in snapshot.models.items():
        running.add_metric([name], model.running)
        held.add_metric([name], model.held)
        streams.add_metric([name], model.streams)
        places.add_metric([name], model.places)
    yield from (running, held, streams, places)
    yield GaugeMetricFamily("vllmd_queue_limit", "Requests that may wait at once, of all models.", snapshot.queue_limit)


def _of_requests(snapshot: Snapshot) -> Iterator[Metric]:
    requests = _counter(
        "vllmd_requests_total",
        "Requests for inference that have ended; the model is empty where it was refused unread.",
        "model",
        "identity",
        "outcome",
    )
    for labels, count in snapshot.by_outcome.items():
        requests.add_metric(labels, count)
    yield requests
    for name, doc, tokens in (
        ("vllmd_prompt_tokens_total", "Tokens of prompts, where engines tell them.", snapshot.tokens_in),
        ("vllmd_generated_tokens_total", "Tokens of answers.", snapshot.tokens_out),
    ):
        family = _counter(name, doc, "model", "identity")
        for key, count in tokens.items():
            family.add_metric(key, count)
        yield family


def _of_served(served: Mapping[str, ServedNow]) -> Iterator[Metric]:
    size = _counter("vllmd_relayed_bytes_total", "About how many bytes of answers came from engines.", "model")
    replays = _counter("vllmd_replays_total", "Requests sent again because their engine died.", "model")
    continued = _counter("vllmd_continuations_total", "Answers with which another engine went on.", "model")
    for name, each in served.items():
        size.add_metric([name], each.size_bytes)
        replays.add_metric([name], each.replays)
        continued.add_metric([name], each.continuations)
    yield from (size, replays, continued)


def _of_times(served: Mapping[str, ServedNow]) -> Iterator[Metric]:
    for name, doc, time_of in _TIMES:
        yield _histogram(name, doc, {model: time_of(each) for model, each in served.items()})


def _gauge(name: str, doc: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, doc, labels=labels)


def _counter(name: str, doc: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, doc, labels=labels)


def _histogram(name: str, doc: str, values: Mapping[str, Values]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, doc, labels=OF_MODEL)
    for model, each in values.items():
        family.add_metric([model], *each)
    return family
