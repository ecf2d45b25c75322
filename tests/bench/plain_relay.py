"""A yardstick: the relay that one writes first with aiohttp, untuned. `plain_relay.py PORT ENGINE_SOCKET`."""

import sys

import aiohttp
from aiohttp import web

SESSION = web.AppKey("session", aiohttp.ClientSession)


async def relay(request: web.Request) -> web.StreamResponse:
    """Sends the body on, and the answer back as it comes."""
    headers = {"Content-Type": request.content_type}
    session = request.app[SESSION]
    async with session.post(request.path_qs, data=await request.read(), headers=headers) as answer:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
        await response.prepare(request)
        async for block in answer.content.iter_any():
            await response.write(block)
        await response.write_eof()
    return response


async def application(engine: str) -> web.Application:
    """The relay's application, with its session."""
    app = web.Application()
    connector = aiohttp.UnixConnector(engine, limit=0)
    app[SESSION] = aiohttp.ClientSession("http://engine", connector=connector, timeout=aiohttp.ClientTimeout())
    app.router.add_post("/{path:.*}", relay)
    return app


if __name__ == "__main__":
    app, port = application(sys.argv[2]), int(sys.argv[1])
    web.run_app(app, host="127.0.0.1", port=port, backlog=4096, print=None, shutdown_timeout=1.0)
