"""The conftest.py of uvicorn's own tests for our protocol: it replaces their fixture `http_protocol_cls`.

test_server_uvicorn.py copies it into the source distribution of uvicorn.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ssehub.server import HttpProtocol
from ssehub.server.deadlines import Wait
from ssehub.server.default_headers import DefaultHeaders


class Adapted(HttpProtocol):
    """HttpProtocol with the attributes of uvicorn's protocols that the tests look at, on completed fakes."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        if _loop is not None and not hasattr(_loop, "call_soon"):
            complete_loop(_loop)
        super().__init__(config, server_state, app_state, _loop)
        # A server of uvicorn's puts the date there, and these tests have none.
        self.port.default_headers = DefaultHeaders(server_state.default_headers, has_date=False)

    def connection_made(self, transport: Any) -> None:
        if not hasattr(transport, "get_write_buffer_size"):
            transport.get_write_buffer_size = lambda: 0
            transport.abort = transport.close
        super().connection_made(transport)

    def _run(self, exchange: Any, app: Any, scope: Any) -> None:
        self.scope = scope
        super()._run(exchange, app, scope)

    @property
    def loop(self) -> Any:
        return self.port.loop

    @property
    def timeout_keep_alive_task(self) -> Wait | None:
        return Wait.REQUEST if self._wait is Wait.REQUEST else None

    @property
    def ws_protocol_class(self) -> Any:
        return self.port.ws_protocol_class

    @ws_protocol_class.setter
    def ws_protocol_class(self, value: Any) -> None:
        self.port.ws_protocol_class = value


def complete_loop(loop: Any) -> None:
    """Give uvicorn's fake of a loop a clock, which its `run_later` advances, `call_at` and `call_soon`."""
    clock = 0.0

    def run_later(with_delay: float) -> None:
        nonlocal clock
        clock += with_delay
        due = [handle for handle in loop._later if handle.delay <= with_delay]
        loop._later = [handle for handle in loop._later if handle.delay > with_delay]
        for handle in due:
            handle.callback(*handle.args)

    loop.time = lambda: clock
    loop.call_at = lambda at, callback, *args: loop.call_later(at - clock, callback, *args)
    loop.call_soon = lambda callback, *args: loop.call_later(0, callback, *args)
    loop.create_future = lambda: asyncio.get_running_loop().create_future()
    loop.run_later = run_later


@pytest.fixture
def http_protocol_cls() -> type[HttpProtocol]:
    return Adapted
