"""JSON Schema (2020-12, as in OpenAPI 3.1) of frozen dataclasses: their types, and what `option` says of a field."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

Schema = dict[str, Any]

_PLAIN: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean"}


def schema_of(cls: type[Any], *, is_strict: bool) -> Schema:
    """The schema of one dataclass's JSON.

    Args:
        is_strict: it is read: other keys are refused, and what has a default may be left out. Else it is written:
            every key is there, and a later version may have more.
    """
    hints = get_type_hints(cls)
    known: list[Field[Any]] = list(fields(cls))
    has_no_default = [each.name for each in known if each.default is MISSING and each.default_factory is MISSING]
    return {
        "type": "object",
        "description": (cls.__doc__ or "").partition("\n")[0],
        "properties": {each.name: _property(hints[each.name], each.metadata, is_strict) for each in known},
        "required": has_no_default if is_strict else [each.name for each in known],
        **({"additionalProperties": False} if is_strict else {}),
    }


def _property(hint: Any, metadata: Mapping[str, Any], is_strict: bool) -> Schema:
    bounds = {"minimum": metadata.get("minimum"), "maximum": metadata.get("maximum")}
    described = {"description": metadata["doc"]} if "doc" in metadata else {}
    return {**_type(hint, is_strict), **described, **{key: value for key, value in bounds.items() if value is not None}}


def _type(hint: Any, is_strict: bool) -> Schema:
    if isinstance(hint, UnionType):
        (inner,) = (each for each in get_args(hint) if each is not NoneType)
        inner = _type(inner, is_strict)
        return {**inner, "type": [inner["type"], "null"]}
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _type(get_args(hint)[0], is_strict)}
    if is_dataclass(hint) and isinstance(hint, type):
        return schema_of(hint, is_strict=is_strict)
    return {"type": _PLAIN[hint]}
