"""The fast path of an endpoint of the control app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

from starlette.responses import PlainTextResponse, Response

from ..at_once import run_at_once
from ..errors import SSEHubError
from ..fanout.origin import origin
from ..hub import Hub
from ..rights import NO_KEY, ControlKey
from .endpoint import Endpoint
from .fast_path import Head
from .guard import Guard
from .refusals import Caller, Refusals
from .requests import ControlRequest, RequestHeaders, check_size, require_identity
from .transport import Connection

logger = logging.getLogger("ssehub.control")


class FastEndpoint:
    """Answers whole requests to `endpoint`, which `guard` admits. `hub` runs."""

    takes_connection = False

    def __init__(self, endpoint: Endpoint, guard: Guard, hub: Hub, refusals: Refusals) -> None:
        self.method = endpoint.method
        self._endpoint = endpoint
        self._guard = guard
        self._hub = hub
        self._refusals = refusals
        self._tasks: set[asyncio.Task[None]] = set()

    def takes(self, query: bytes) -> bool:
        return not self._endpoint.keeps_body_open(query)

    def answer(self, head: Head, body: bytes, connection: Connection) -> bool:
        endpoint, key = self._endpoint, NO_KEY
        named = head.named
        try:
            server = connection.server
            if head.admitted_at is None or head.admitted_at != server:
                self._guard.check_caller(named, server)
            key = self._guard.key_of(named)
            if endpoint.right is not None:
                key.require(endpoint.right)
            head.admitted_at = server
            require_identity(named)
            check_size(len(body), endpoint.max_body_bytes)
            answer = endpoint.answer(ControlRequest(head.query, named, body, key))
        except Exception as exc:
            self._send(connection, self._failed(exc, connection, named, key))
            return True
        if isinstance(answer, Response):
            self._send(connection, answer)
        else:
            self._finish(answer, connection, named, key)
        return True

    def _finish(
        self,
        answer: Coroutine[Any, Any, Response],
        connection: Connection,
        headers: RequestHeaders,
        key: ControlKey,
    ) -> None:
        """Send the answer when it is there."""

        async def respond() -> Response:
            try:
                return await answer
            except Exception as exc:
                return self._failed(exc, connection, headers, key)

        task = run_at_once(respond(), partial(self._send, connection))
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, connection: Connection, response: Response) -> None:
        self._hub.control_responses[response.status_code] += 1
        connection.respond(response.status_code, response.raw_headers, bytes(response.body))

    def _failed(self, exc: Exception, connection: Connection, headers: RequestHeaders, key: ControlKey) -> Response:
        """Count and log why a request is refused, or has failed; return the response."""
        endpoint = self._endpoint
        if isinstance(exc, SSEHubError):
            client = connection.client
            came_from = origin(client[0] if client else "", headers.get("user-agent", ""))
            caller = Caller(self.method, endpoint.path, came_from, None, (), (), key.name)
            self._refusals.refuse_control(exc, caller)
            return endpoint.refusal(exc, headers)
        logger.error("%s %s failed", self.method, endpoint.path, exc_info=exc)
        return PlainTextResponse("Internal Server Error", 500, {"Connection": "close"})
