"""The fast path of an endpoint of the control app."""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from starlette.responses import PlainTextResponse, Response

from ..at_once import run_at_once
from ..errors import SSEHubError
from ..fanout.origin import origin
from ..hub import Hub
from ..rights import NO_KEY
from .endpoint import Endpoint
from .fast_path import FastRequest
from .guard import Guard
from .refusals import Caller, Refusals
from .requests import ControlRequest, check_body, parsed_headers
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

    def answer(self, request: FastRequest, connection: Connection) -> bool:
        task = run_at_once(self._respond(request), partial(self._send, connection))
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return True

    def _send(self, connection: Connection, response: Response) -> None:
        self._hub.control_responses[response.status_code] += 1
        connection.respond(response.status_code, response.raw_headers, bytes(response.body))

    async def _respond(self, request: FastRequest) -> Response:
        endpoint, key = self._endpoint, NO_KEY
        headers = parsed_headers(request.headers)
        try:
            key = self._guard.check(headers, request.server)
            if endpoint.right is not None:
                key.require(endpoint.right)
            check_body(headers, str(len(request.body)), endpoint.max_body_bytes)
            return await endpoint.respond(ControlRequest(request.query, headers, request.body, key))
        except SSEHubError as exc:
            came_from = origin(request.client[0] if request.client else "", headers.get("user-agent", ""))
            caller = Caller(self.method, endpoint.path, came_from, None, (), (), key.name)
            self._refusals.refuse_control(exc, caller)
            return endpoint.refusal(exc, headers)
        except Exception:
            logger.exception("%s %s failed", self.method, endpoint.path)
            return PlainTextResponse("Internal Server Error", 500, {"Connection": "close"})
