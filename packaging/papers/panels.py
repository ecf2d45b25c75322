"""What the dashboard for Grafana shows, row by row: `dashboard` makes forty lines of JSON of each panel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllmd.lifecycle import State

Json = dict[str, Any]
Targets = tuple[tuple[str, str], ...]

COLUMNS = 24
"""The width of Grafana's grid."""

OF = 'instance=~"$instance",model=~"$model"'
"""The chosen models of the chosen daemons."""

AT = 'instance=~"$instance"'

COLOURS = {
    State.STOPPED: "#808080",
    State.STARTING: "blue",
    State.READY: "green",
    State.UNHEALTHY: "orange",
    State.STOPPING: "#b0b0b0",
    State.BACKOFF: "yellow",
    State.FAILED: "red",
    State.DOZING: "light-purple",
    State.ASLEEP: "purple",
}


@dataclass(frozen=True)
class Panel:
    """One picture.

    Args:
        kind: Grafana's word: stat, timeseries, state-timeline.
        title, doc: above it, and behind the little i.
        targets: queries, and how the lines of each are called.
        unit: Grafana's word.
        width, height: in the grid's units.
        is_stacked: whether lines are piled up.
        most: where the axis ends; None where the values say so.
        steps: (value, colour) from which on a number has that colour; the first from minus infinity.
        mappings: numbers that mean words.
    """

    kind: str
    title: str
    doc: str
    targets: Targets
    unit: str = "short"
    width: int = 8
    height: int = 8
    is_stacked: bool = False
    most: float | None = None
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    mappings: tuple[Json, ...] = ()


def rate(name: str, by: str, which: str = OF) -> str:
    """How much of a counter there is a second."""
    return f"sum by ({by}) (rate({name}{{{which}}}[$__rate_interval]))"


def quantile(part: float, name: str, by: str = "model", which: str = OF) -> str:
    """The value that so large a part of a histogram lies below."""
    inner = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({part}, {rate(f'{name}_bucket', inner, which)})"


def quantiles(name: str) -> Targets:
    """The middle, and the slow ones."""
    return tuple((quantile(part, name), f"{{{{model}}}} {word}") for part, word in ((0.5, "p50"), (0.99, "p99")))


def states() -> str:
    """A model's state as a number: its place among all states."""
    terms = (f'{number} * vllmd_model_state{{{OF},state="{state}"}}' for number, state in enumerate(State))
    return " + ".join(f"max by (instance, model) ({term})" for term in terms)


STATES: tuple[Json, ...] = (
    {
        "type": "value",
        "options": {
            str(number): {"text": state.value, "color": COLOURS[state], "index": number}
            for number, state in enumerate(State)
        },
    },
)

FAULTS = 'outcome=~"engine_error|internal_error|unavailable"'
STARTS = f"histogram_quantile(0.99, sum by (le, model) (increase(vllmd_time_to_ready_seconds_bucket{{{OF}}}[1d])))"
BAD = ((None, "green"), (0.01, "orange"), (0.05, "red"))
WHOLE = ((None, "red"), (1.0, "green"))

ROWS: dict[str, Sequence[Panel]] = {
    "The service at a glance": (
        Panel(
            "stat",
            "Ready",
            "Of the models that are in memory or on the way there, the part that answers with tokens.",
            (
                (
                    f'sum(vllmd_model_state{{{OF},state="ready"}})'
                    f' / sum(vllmd_model_state{{{OF},state!~"stopped|asleep"}})',
                    "",
                ),
            ),
            "percentunit",
            4,
            4,
            steps=WHOLE,
        ),
        Panel("stat", "Running", "In engines.", ((f"sum(vllmd_requests_running{{{OF}}})", ""),), width=4, height=4),
        Panel("stat", "Held", "They wait.", ((f"sum(vllmd_requests_held{{{OF}}})", ""),), width=4, height=4),
        Panel(
            "stat",
            "Tokens a second",
            "Tokens of answers.",
            ((f"sum(rate(vllmd_generated_tokens_total{{{OF}}}[$__rate_interval]))", ""),),
            width=4,
            height=4,
        ),
        Panel(
            "stat",
            "First token, p99",
            "From arrival to the first token, waits included.",
            ((quantile(0.99, "vllmd_time_to_first_token_seconds", ""), ""),),
            "s",
            4,
            4,
        ),
        Panel(
            "stat",
            "Failed requests",
            "The part of all requests that the engine or vllmd has failed.",
            (
                (
                    f"(sum(rate(vllmd_requests_total{{{OF},{FAULTS}}}[$__rate_interval])) or vector(0))"
                    f" / sum(rate(vllmd_requests_total{{{OF}}}[$__rate_interval]))",
                    "",
                ),
            ),
            "percentunit",
            4,
            4,
            steps=BAD,
        ),
        Panel(
            "state-timeline",
            "States",
            "The state of each model's engine.",
            ((states(), "{{model}}"),),
            width=COLUMNS,
            height=6,
            mappings=STATES,
        ),
    ),
    "Latency": (
        Panel("timeseries", "First token", "From arrival to the first token, waits included.",
              quantiles("vllmd_time_to_first_token_seconds"), "s"),
        Panel("timeseries", "Between tokens", "The mean of each answer.", quantiles("vllmd_inter_token_seconds"), "s"),
        Panel("timeseries", "Whole requests", "From arrival to the end.",
              quantiles("vllmd_request_duration_seconds"), "s"),
    ),
    "Throughput": (
        Panel("timeseries", "Tokens of answers", "A second.",
              ((rate("vllmd_generated_tokens_total", "model"), "{{model}}"),), is_stacked=True),
        Panel("timeseries", "Tokens of prompts", "A second, where engines tell.",
              ((rate("vllmd_prompt_tokens_total", "model"), "{{model}}"),), is_stacked=True),
        Panel("timeseries", "Bytes of answers", "A second.",
              ((rate("vllmd_relayed_bytes_total", "model"), "{{model}}"),), "Bps", is_stacked=True),
        Panel("timeseries", "Requests by outcome", "A second.",
              ((rate("vllmd_requests_total", "outcome"), "{{outcome}}"),), "reqps", 12, is_stacked=True),
        Panel("timeseries", "Requests by who asks",
              "A second; administrators see names, others as metrics.identities says.",
              ((rate("vllmd_requests_total", "identity"), "{{identity}}"),), "reqps", 12, is_stacked=True),
    ),
    "Queue": (
        Panel("timeseries", "Running, and places", "An engine works on so many requests at once.",
              ((f"sum by (model) (vllmd_requests_running{{{OF}}})", "{{model}}"),
               (f"sum by (model) (vllmd_places{{{OF}}})", "{{model}} places"))),
        Panel("timeseries", "Held, and the queue's limit", "One more than the limit is refused.",
              ((f"sum by (model) (vllmd_requests_held{{{OF}}})", "{{model}}"),
               (f"max by (instance) (vllmd_queue_limit{{{AT}}})", "limit"))),
        Panel("timeseries", "Time in the queue", "For the engine, or for a place in it.",
              quantiles("vllmd_queue_seconds"), "s"),
    ),
    "Engine": (
        Panel("timeseries", "KV cache", "How much of it is in use.",
              ((f"max by (model) (vllm:kv_cache_usage_perc{{{OF}}})", "{{model}}"),), "percentunit", most=1.0),
        Panel("timeseries", "In vLLM's scheduler", "What waits in it waits behind vllmd's own queue.",
              ((f"sum by (model) (vllm:num_requests_running{{{OF}}})", "{{model}} running"),
               (f"sum by (model) (vllm:num_requests_waiting{{{OF}}})", "{{model}} waiting"))),
        Panel("timeseries", "Prefix cache", "The part of prompts' tokens that were there already.",
              ((f"{rate('vllm:prefix_cache_hits_total', 'model')} / {rate('vllm:prefix_cache_queries_total', 'model')}",
                "{{model}}"),), "percentunit", most=1.0),
        Panel("timeseries", "Tokens, as vLLM counts them", "A second.",
              ((rate("vllm:generation_tokens_total", "model"), "{{model}} generated"),
               (rate("vllm:prompt_tokens_total", "model"), "{{model}} prompts"))),
        Panel("timeseries", "Preemptions", "A second: the KV cache was too small for what ran.",
              ((rate("vllm:num_preemptions_total", "model"), "{{model}}"),)),
        Panel("timeseries", "Engine tells its numbers", "1: it did, for the last page.",
              ((f"min by (model) (vllmd_engine_scrape_ok{{{OF}}})", "{{model}}"),), most=1.0),
    ),
    "Incidents and restarts": (
        Panel("timeseries", "Restarts by cause", "Since the daemon began; `vllmctl incidents` says more.",
              ((f"sum by (model, cause) (vllmd_engine_restarts_total{{{OF}}})", "{{model}}: {{cause}}"),)),
        Panel("timeseries", "Health checks", "A second, by result.",
              ((rate("vllmd_probes_total", "model, result"), "{{model}} {{result}}"),)),
        Panel("timeseries", "Requests that survived", "A second: sent again, or continued by the next engine.",
              ((rate("vllmd_replays_total", "model"), "{{model}} sent again"),
               (rate("vllmd_continuations_total", "model"), "{{model}} continued"))),
        Panel("timeseries", "Starts", "From an engine's start to its first token, those of the last day.",
              ((STARTS, "{{model}} p99"),), "s", 12),
        Panel("timeseries", "Open streams", "Answers that come as events.",
              ((f"sum by (model) (vllmd_streams_open{{{OF}}})", "{{model}}"),), width=12),
    ),
    "vllmd itself": (
        Panel("timeseries", "Lag of the event loop", "How late everything is that the daemon does.",
              ((quantile(0.5, "vllmd_event_loop_lag_seconds", "instance", AT), "{{instance}} p50"),
               (quantile(0.99, "vllmd_event_loop_lag_seconds", "instance", AT), "{{instance}} p99")), "s"),
        Panel("timeseries", "CPU", "Cores.", ((rate("process_cpu_seconds_total", "instance", AT), "{{instance}}"),)),
        Panel("timeseries", "Memory", "Resident.",
              ((f"max by (instance) (process_resident_memory_bytes{{{AT}}})", "{{instance}}"),), "bytes"),
    ),
}  # fmt: skip
