"""The pages of several engines as families of metrics, each with a label that says of which model it is. Pure.

What engines say is not trusted: a page is read line by line, and a family in which anything is not as it should be is
left out whole, so that the page into which the rest goes stays a valid one in every format.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from prometheus_client import Metric
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

PREFIX = "vllm:"
"""What vLLM's own metrics begin with; what its libraries count besides is not passed on."""

FAMILIES = 1000
"""So many are taken of a page."""

_NAME = r"vllm:[a-zA-Z0-9_:]{1,200}"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]{0,100}="(?:[^"\\]|\\[\\"n])*"'
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram)")
_HELP = re.compile(rf"# HELP ({_NAME}) (.*)")
_SAMPLE = re.compile(
    rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*)?),?\}})? ([+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|Inf)|NaN)"
)
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\[\\"n])*)"')
_ESCAPE = re.compile(r'\\([\\"n])')
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

Labels = dict[str, str]
Group = dict[str, list[Sample]]


class _Reader:
    """Reads one page."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.families: dict[str, Metric] = {}
        self._by_sample: dict[str, Metric] = {}
        self._docs: dict[str, str] = {}
        self._spoilt: set[str] = set()

    def read(self, page: str) -> Iterator[Metric]:
        """The families that are as they should be."""
        for line in page.split("\n"):
            if line.startswith(PREFIX):
                self._take_sample(line)
            elif match := _TYPE.fullmatch(line):
                self._open(match[1], match[2])
            elif match := _HELP.fullmatch(line):
                self._docs[match[1]] = "".join(filter(str.isprintable, match[2]))[:500]
        for name, family in self.families.items():
            if name not in self._spoilt and family.samples and _put_in_order(family):
                yield family

    def _open(self, name: str, kind: str) -> None:
        if name.endswith("_created") or len(self.families) >= FAMILIES:
            return
        family = Metric(name.removesuffix("_total") if kind == "counter" else name, self._docs.get(name, ""), kind)
        names = [family.name + suffix for suffix in _SUFFIXES[kind]]
        if family.name in self.families or not self._by_sample.keys().isdisjoint(names):
            self._spoilt.add(family.name)
            return
        self.families[family.name] = family
        self._by_sample |= dict.fromkeys(names, family)

    def _take_sample(self, line: str) -> None:
        """Adds a sample to its family; a line that is none spoils the family of which it seems to be."""
        family = self._by_sample.get(re.split("[{ ]", line, maxsplit=1)[0])
        if family is None:
            return
        match = _SAMPLE.fullmatch(line)
        labels = _labels(match[2] or "", self._model) if match else None
        if match is None or labels is None:
            self._spoilt.add(family.name)
        else:
            family.add_sample(match[1], labels, float(match[3]))


def _labels(text: str, model: str) -> Labels | None:
    """The labels of a sample and `model`; what the engine calls so is `exported_model`, as Prometheus has it."""
    pairs = _PAIR.findall(text)
    labels = {"exported_model" if key == "model" else key: _ESCAPE.sub(_unescaped, value) for key, value in pairs}
    is_sound = len(labels) == len(pairs) and all(map(str.isprintable, labels.values()))
    return {"model": model, **labels} if is_sound else None


def _unescaped(match: "re.Match[str]") -> str:
    return "\n" if match[1] == "n" else match[1]


def _put_in_order(family: Metric) -> bool:
    """Sorts the samples of a family as they have to be; returns whether they can be told."""
    keys = {(each.name, *sorted(each.labels.items())) for each in family.samples}
    if len(keys) != len(family.samples):
        return False
    if family.type == "gauge":
        return True
    if not all(each.value >= 0 for each in family.samples):  # NaN neither
        return False
    return family.type == "counter" or _put_histogram_in_order(family)


def _put_histogram_in_order(family: Metric) -> bool:
    groups: dict[tuple[tuple[str, str], ...], Group] = {}
    for sample in family.samples:
        rest = tuple(sorted((key, value) for key, value in sample.labels.items() if key != "le"))
        groups.setdefault(rest, {}).setdefault(sample.name.removeprefix(family.name), []).append(sample)
    family.samples = []
    for group in groups.values():
        if not _is_histogram(group):
            return False
        family.samples += [_with_canonical_bound(each) for each in group["_bucket"]] + group["_count"] + group["_sum"]
    return True


def _is_histogram(group: Group) -> bool:
    """Whether the samples are all that a histogram has: buckets that grow up to infinity, a sum, a count."""
    if group.keys() != {"_bucket", "_sum", "_count"} or len(group["_sum"]) != 1 or len(group["_count"]) != 1:
        return False
    buckets, count = group["_bucket"], group["_count"][0]
    try:
        bounds = [float(each.labels["le"]) for each in buckets]
    except (KeyError, ValueError):
        return False
    return (
        "le" not in count.labels
        and "le" not in group["_sum"][0].labels
        and all(low < high for low, high in pairwise(bounds))
        and all(low.value <= high.value for low, high in pairwise(buckets))
        and bounds[0] >= 0
        and bounds[-1] == float("inf")
        and buckets[-1].value == count.value
        and all(each.value.is_integer() for each in buckets)
    )


def _with_canonical_bound(sample: Sample) -> Sample:
    return sample._replace(labels={**sample.labels, "le": floatToGoString(sample.labels["le"])})


def merged(pages: Mapping[str, str]) -> list[Metric]:
    """The families of all pages; where engines differ in what a name means, the first one is right.

    Args:
        pages: model → what its engine said.
    """
    families: dict[str, Metric] = {}
    owners: dict[str, str] = {}
    for model, page in pages.items():
        for family in _Reader(model).read(page):
            names = {family.name, *(sample.name for sample in family.samples)}
            if any(owners.setdefault(name, family.name) != family.name for name in names):
                continue
            known = families.setdefault(family.name, family)
            if known is not family and known.type == family.type:
                known.samples += family.samples
    return list(families.values())
