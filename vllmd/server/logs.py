"""`/api/logs`: the last lines that a model's engines have printed, and on request the next ones as they come."""

from collections.abc import Iterable, Mapping

from aiohttp import web
from aiohttp_sse import sse_response

from vllmd import sse, wire
from vllmd.engine.lines import Line
from vllmd.engine.supervisor import Supervisor
from vllmd.sections import Current
from vllmd.server.bodies import choose_model, json_response
from vllmd.server.doors import limit_send_buffer, require_client
from vllmd.server.followers import Followers
from vllmd.server.queries import FOLLOW, LINES, MODEL
from vllmd.statuses import LogLine


class Logs:
    """The handler of `/api/logs`.

    Args:
        current: names the default model.
        supervisors: one for each model; each keeps its engines' last lines.
    """

    def __init__(self, current: Current, supervisors: Mapping[str, Supervisor]) -> None:
        self._current = current
        self._supervisors = supervisors
        self._followers = Followers()
        self.dismiss = self._followers.dismiss

    async def lines(self, request: web.Request) -> web.StreamResponse:
        """`GET /api/logs?model=&lines=&follow=`: JSON, or events that go on where `follow` is 1.

        Raises:
            ModelNotFound: no such model.
            RequestError: `lines` or `follow` is no number.
        """
        name = choose_model(request.query.get(MODEL.name), self._supervisors, self._current.config.default_model)
        count, follow = LINES.read(request), FOLLOW.read(request)
        if follow:
            return await self._follow(request, self._supervisors[name], count)
        lines = [wire.to_json(_told(each)) for each in self._supervisors[name].lines.latest(count)]
        return json_response({"model": name, "lines": lines})

    async def _follow(self, request: web.Request, supervisor: Supervisor, count: int) -> web.StreamResponse:
        limit_send_buffer(require_client(request))
        lines, last = supervisor.lines.latest(count), supervisor.lines.last
        async with (
            self._followers.joined(),
            sse_response(request, sep="\n", ping_interval=self._current.config.sse.keepalive_s) as stream,
        ):
            await stream.write(sse.comment(f"what the engine of {supervisor.name} prints") + _events(lines))
            while True:
                lines, missed = await supervisor.lines.after(last)
                told = sse.encode(wire.dumps({"missed": missed}), "missed") if missed else b""
                # A client that reads slowly is waited for here, and meanwhile lines may be forgotten.
                await stream.write(told + _events(lines))
                last = lines[-1].number


def _events(lines: Iterable[Line]) -> bytes:
    return b"".join(sse.encode(wire.dumps(wire.to_json(_told(each))), "line", each.number) for each in lines)


def _told(line: Line) -> LogLine:
    return LogLine(line.at, line.text)
