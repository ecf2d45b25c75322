"""`/openapi.json`: what vllmd serves, described for tools (OpenAPI 3.1), made from the route table and the dataclasses.

The routes that are relayed are vLLM's to describe; here stands what vllmd itself looks at in their requests.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aiohttp import hdrs, web

from vllmd import __version__, incident, provisions, routes, statuses, wire
from vllmd.errors import VllmdError
from vllmd.server import queries
from vllmd.server.assets import TYPES
from vllmd.server.bodies import json_response
from vllmd.server.openai import INFERENCE, STREAMING
from vllmd.server.schemas import Schema, schema_of

ORDER = "/api/models/{name}/{verb}"
FIT = "/api/models/{name}/fit"
RUNS_BODY: Schema = {
    "type": "object",
    "properties": {name: {} for name in wire.ENVELOPE} | {"input": {"$ref": "#/components/schemas/PromptRequest"}},
    "required": ["input"],
    "additionalProperties": False,
}
_ENGINE_S: Schema = {"type": "object", "properties": {"model": {"type": ["string", "null"]}, "stream": {}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_ERROR = wire.error_body(VllmdError(""))["error"]
_EVENTS = "text/event-stream"
_JSON = "application/json"
_CHANGES = _object(changes={"type": "array", "items": _ref("Change")})

BODIES: Mapping[str, Schema] = {
    routes.PROMPT: _ref("PromptRequest"),
    routes.WORKFLOW_RUNS: RUNS_BODY,
    routes.ENVIRONMENTS: _ref("InstallRequest"),
    f"{routes.ENVIRONMENTS}/{{id}}/use": _ref("UseRequest"),
    routes.PULL: _ref("PullRequest"),
    routes.VERIFY: _ref("PullRequest"),
    **dict.fromkeys(INFERENCE, _ENGINE_S),
}
"""Of each route that reads one, its body."""

QUERIES: Mapping[str, tuple[queries.Number | queries.Text, ...]] = {
    ORDER: (queries.WAIT,),
    FIT: (queries.LENGTH,),
    routes.LOGS: (queries.MODEL, queries.LINES, queries.FOLLOW),
    routes.INCIDENTS: (queries.OF_MODEL, queries.LIMIT),
}
"""Of each route that reads any, what stands behind its `?`."""

ANSWERS: Mapping[str, Mapping[str, Schema]] = {
    routes.PAGE: {"text/html": {}},
    f"{routes.PAGE_FILES}{{file}}": {each.partition(";")[0]: {} for each in TYPES.values()},
    routes.HEALTH: {_JSON: _object(status=_TEXT)},
    routes.READY: {_JSON: _object(status=_TEXT, model=_TEXT)},
    routes.STATUS: {_JSON: _ref("Status")},
    routes.EVENTS: {_EVENTS: {}},
    routes.LOGS: {_JSON: _object(model=_TEXT, lines={"type": "array", "items": _ref("LogLine")}), _EVENTS: {}},
    routes.METRICS: {"text/plain": _TEXT, "application/openmetrics-text": _TEXT},
    routes.REQUESTS: {_JSON: _object(requests={"type": "array", "items": _ref("RequestStatus")})},
    f"{routes.REQUESTS}/{{id}}": {_JSON: _object(id=_TEXT, cancelled={"type": "integer"})},
    routes.INCIDENTS: {_JSON: _object(incidents={"type": "array", "items": _ref("Incident")})},
    f"{routes.INCIDENTS}/{{id}}": {_JSON: _ref("IncidentReport")},
    routes.JOBS: {_JSON: _object(jobs={"type": "array", "items": _ref("JobStatus")})},
    f"{routes.JOBS}/{{id}}": {_JSON: _object(job=_ref("JobStatus"))},
    routes.ENVIRONMENTS: {_JSON: {"type": "object"}},
    f"{routes.ENVIRONMENTS}/{{id}}/use": {_JSON: _object(job=_ref("JobStatus"))},
    f"{routes.ENVIRONMENTS}/{{id}}": {_JSON: _object(id=_TEXT, removed={"type": "boolean"})},
    routes.PULL: {_JSON: _object(job=_ref("JobStatus"))},
    routes.VERIFY: {_JSON: _object(job=_ref("JobStatus"))},
    routes.PRUNE: {_JSON: _object(removed={"type": "array", "items": _TEXT}, freed={"type": "integer"})},
    routes.LOCAL: {_JSON: _object(models={"type": "array", "items": _ref("LocalModel")})},
    f"{routes.LOCAL}/{{name}}": {_JSON: _object(model=_TEXT, freed={"type": "integer"})},
    routes.PLAN: {_JSON: _CHANGES},
    routes.RELOAD: {_JSON: _CHANGES},
    ORDER: {_JSON: {"type": "object"}},
    FIT: {_JSON: _ref("Fit")},
    routes.MODELS: {_JSON: _object(object=_TEXT, data={"type": "array", "items": _ref("Card")})},
    f"{routes.MODELS}/{{name}}": {_JSON: _ref("Card")},
    routes.OPENAPI: {_JSON: {"type": "object"}},
    routes.PROMPT: {_JSON: _ref("Answer"), _EVENTS: {}},
    routes.WORKFLOW_RUNS: {_JSON: _ref("Answer"), _EVENTS: {}},
    **{path: {_JSON: {}, **({_EVENTS: {}} if path in STREAMING else {})} for path in INFERENCE},
}
"""Of each route, what it answers when all is well, by media type."""

ACCEPTED = frozenset(
    {
        ORDER,
        routes.ENVIRONMENTS,
        f"{routes.ENVIRONMENTS}/{{id}}/use",
        f"{routes.REQUESTS}/{{id}}",
        f"{routes.JOBS}/{{id}}",
        routes.PULL,
        routes.VERIFY,
    }
)
"""Routes that also answer 202: it is being done."""

_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
_TIMINGS = _object(queue_s=_NUMBER_OR_NULL, first_token_s=_NUMBER_OR_NULL, tokens_per_s=_NUMBER_OR_NULL)

SCHEMAS: Mapping[str, Schema] = {
    "Status": schema_of(statuses.Status, is_strict=False),
    "LogLine": schema_of(statuses.LogLine, is_strict=False),
    "Incident": schema_of(incident.Incident, is_strict=False),
    "IncidentReport": schema_of(incident.IncidentReport, is_strict=False),
    "RequestStatus": schema_of(statuses.RequestStatus, is_strict=False),
    "Fit": schema_of(provisions.Fit, is_strict=False),
    "JobStatus": schema_of(provisions.JobStatus, is_strict=False),
    "LocalModel": schema_of(provisions.LocalModel, is_strict=False),
    "PullRequest": schema_of(wire.PullRequest, is_strict=True) | {"required": ["model"]},
    "EnvironmentStatus": schema_of(provisions.EnvironmentStatus, is_strict=False),
    "InstallRequest": schema_of(wire.InstallRequest, is_strict=True),
    "UseRequest": schema_of(wire.UseRequest, is_strict=True),
    "Change": schema_of(statuses.Change, is_strict=False),
    "PromptRequest": schema_of(wire.PromptRequest, is_strict=True) | {"required": ["prompt"]},
    "Answer": _object(
        text=_TEXT,
        model=_TEXT,
        finish_reason=_TEXT_OR_NULL,
        usage={"type": "object"},
        timings=_TIMINGS,
    ),
    "Card": _object(id=_TEXT, object=_TEXT, created={"type": "integer"}, owned_by=_TEXT, root=_TEXT, status=_TEXT),
    "Error": _object(error=_object(**{name: _TEXT for name in _ERROR if name != "param"}, param=_TEXT_OR_NULL)),
}

ENGINE_S = frozenset({*INFERENCE, routes.PROMPT, routes.WORKFLOW_RUNS})
"""Routes on which the engine's own errors pass unchanged."""

_ROUTE = re.compile(r"^[A-Z]+ /[^ ]*(?:, /[^ ]*)*: ")
"""What a handler's docstring begins with, where the path needs to be told."""

_PARAMETER = re.compile(r"\{(\w+)(?::([^{}]*))?\}")


class Description:
    """The handler of `/openapi.json`."""

    def __init__(self) -> None:
        self._document: Schema | None = None

    async def serve(self, request: web.Request) -> web.Response:
        """What is served here, for tools that read OpenAPI."""
        self._document = self._document or document(request.app.router.routes())
        return json_response(self._document)


def document(routes: Iterable[web.AbstractRoute]) -> Schema:
    """The whole description."""
    paths: dict[str, Schema] = {}
    for route in routes:
        if route.method != hdrs.METH_HEAD and route.resource is not None:
            pattern = _pattern_of(route)
            path = _PARAMETER.sub(r"{\1}", pattern)
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, pattern)
    schemes = {
        "key": {"type": "http", "scheme": "bearer"},
        "anthropic": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "vllmd", "version": __version__, "description": "vLLM as a service"},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS), "securitySchemes": schemes},
        "security": [{"key": []}, {"anthropic": []}, {}],
    }


def _pattern_of(route: web.AbstractRoute) -> str:
    """A route's path as it stands in the table."""
    assert route.resource is not None
    info = route.resource.get_info()
    pattern = info.get("pattern")
    if pattern is None:
        return str(info["path"])
    return re.sub(r"\(\?P<(\w+)>([^()]*)\)", r"{\1:\2}", pattern.pattern).replace("\\", "")


def _operation(route: web.AbstractRoute, path: str, pattern: str) -> Schema:
    first_line = (route.handler.__doc__ or "").strip().partition("\n")[0]
    summary = _ROUTE.sub("", first_line.replace("`", ""))
    body = BODIES.get(path) if route.method == hdrs.METH_POST else None
    errors = {_JSON: {"type": "object"} if path in ENGINE_S else _ref("Error")}
    return {
        "operationId": f"{route.method.lower()} {path}",
        "summary": summary[:1].upper() + summary[1:],
        "parameters": [*_path_parameters(pattern), *map(_query_parameter, QUERIES.get(path, ()))],
        **({"requestBody": {"required": True, "content": {_JSON: {"schema": body}}}} if body else {}),
        "responses": {
            "200": _answer("done", ANSWERS.get(path, {})),
            **({"202": _answer("it is being done", {_JSON: {"type": "object"}})} if path in ACCEPTED else {}),
            "default": _answer("an error; of a relayed request, maybe the engine's own", errors),
        },
    }


def _answer(what: str, content: Mapping[str, Schema]) -> Schema:
    return {"description": what, "content": {kind: {"schema": schema} for kind, schema in content.items()}}


def _path_parameters(pattern: str) -> Iterator[Schema]:
    for name, allowed in _PARAMETER.findall(pattern):
        choice = {"enum": allowed.split("|")} if "|" in allowed else {"minLength": 1}
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", **choice}}


def _query_parameter(query: queries.Number | queries.Text) -> Schema:
    number = {"type": "integer", "minimum": 0, "maximum": 999_999_999}
    schema: dict[str, Any] = _TEXT if isinstance(query, queries.Text) else {**number, "default": query.default}
    return {"name": query.name, "in": "query", "description": query.doc, "schema": schema}
