"""What a line of the log is about, beside its text: model, generation, request. Carried along by `logging` itself.

The names are those of the fields: `model` is `VLLMD_MODEL=` in the journal and `"model"` in JSON lines.
"""

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

_ATTRIBUTE = "about"

CURRENT: ContextVar[Mapping[str, str]] = ContextVar("about", default=MappingProxyType({}))
"""What all that is logged here and now is about; a request sets it for its task and what that starts."""


def about(**fields: object) -> dict[str, object]:
    """For `extra=` of a log call: what this line is about."""
    return {_ATTRIBUTE: {name: str(value) for name, value in fields.items() if value is not None}}


def fields_of(record: logging.LogRecord) -> Mapping[str, str]:
    """What a line is about; to be asked where it is logged."""
    return {**CURRENT.get(), **getattr(record, _ATTRIBUTE, {})}
