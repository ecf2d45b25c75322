"""The loops that asynchronous tests run on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Function
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's own loop; and uvloop's too, where a module asks for it: `UVLOOP = True`."""
    more = {"uvloop": uvloop.new_event_loop} if getattr(item.module, "UVLOOP", False) else {}
    return {"asyncio": asyncio.new_event_loop, **more}
