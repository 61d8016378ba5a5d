"""`POST /explain/`: says why a client would get a stream or not, and what it would begin with."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response

from ..claims import Claims
from ..errors import InvalidRequest
from ..fanout.resume import Start
from ..fields import check_names
from ..hub import Hub
from ..pace import pace_for
from ..proxies import limit_key, parse_address
from ..rights import Right
from ..settings import Limits
from ..tokens import Tokens
from .endpoint import Endpoint
from .explanation import Question, explain
from .forms import read_fields, refuse_null
from .origins import require_origin
from .requests import ControlRequest

LISTS = ("channel", "channels", "patterns")
FIELDS = ("token", "userId", *LISTS, "lastEventId", "since", "origin", "address")


class Explain(Endpoint):
    """`POST /explain/`: explains a token, or a user with channels. `cors_origins` are those of the client app."""

    path = "/explain"
    method = "POST"
    right = Right.READ

    def __init__(
        self,
        hub: Hub,
        tokens: Tokens,
        cors_origins: Collection[str] | None,
        limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub
        self._tokens = tokens
        self._cors_origins = None if cors_origins is None else frozenset(cors_origins)
        self._now = now

    async def respond(self, request: ControlRequest) -> Response:
        if request.query_string:
            raise InvalidRequest("the query is not used: send the fields in the body, because servers log queries")
        fields, _ = await read_fields(request, FIELDS, None, pace_for(request.body), repeated=LISTS)
        explanation = await explain(self._hub, self._tokens, self._question(fields), self._cors_origins)
        return JSONResponse(explanation.to_json(), headers={"Cache-Control": "no-store"})

    def _question(self, fields: Mapping[str, Any]) -> Question:
        """Raises InvalidRequest."""
        refuse_null(fields)
        for name in fields.keys() - LISTS:
            if not isinstance(fields[name], str):
                raise InvalidRequest(f"{name} must be a string, not {type(fields[name]).__name__}")
        if "channel" in fields and "channels" in fields:
            raise InvalidRequest("channel and channels are both given: leave one out")
        channels = _names(fields, "channels" if "channels" in fields else "channel")
        patterns = _names(fields, "patterns")
        token = fields.get("token")
        if token is not None:
            for name in ("userId", "patterns"):
                if name in fields:
                    raise InvalidRequest(f"token and {name} are both given: leave one out, as the token says it")
            claims = None
        elif "userId" in fields:
            claims = Claims(fields["userId"], channels, iat=self._now(), patterns=patterns)
            channels = ()
        else:
            raise InvalidRequest("token is missing: send the token of a client, or userId and channel")
        return Question(
            token,
            claims,
            channels,
            Start.parse(fields.get("lastEventId"), fields.get("since")),
            _address(fields),
            require_origin(fields["origin"]) if "origin" in fields else None,
        )


def _names(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    values = value if isinstance(value, list) else [value]
    return check_names(name, values) if values else ()


def _address(fields: Mapping[str, Any]) -> str | None:
    """Return the address as limits count it, None if there is none."""
    address = fields.get("address")
    if address is None:
        return None
    if parse_address(address) is None:
        raise InvalidRequest(f"address {address[:40]!r} is not an IP address: give that of the client, without a port")
    return limit_key(address)
