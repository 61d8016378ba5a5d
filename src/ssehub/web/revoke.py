"""`/revoke/`: POST ends access, DELETE takes that back, GET lists what is in force."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from heapq import nsmallest
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from ..errors import BrokerUnavailable, InvalidRequest, TokenError, UnknownRevocation
from ..fields import EVERYONE
from ..hub import Hub
from ..loglimit import limited_logger
from ..pace import Pace, pace_for
from ..revocations import MAX_REVOCATIONS, Revocation, Revocations
from ..rights import Right
from ..settings import LEEWAY, Limits
from ..tokens import Tokens
from .description import Answer, Description, Field, Shape, fields_body, list_of, object_of, queries
from .endpoint import Endpoint
from .forms import FORM, JSON, form_fields, read_fields, refuse_null
from .requests import ControlRequest
from .schemas import BOOLEAN, COUNT, NAME, OK, POSITION, STRING, UNIX_TIME, nullable, whole_numbers

logger = limited_logger("ssehub.control")

FIELDS = {
    "jti": "jti",
    "userId": "user_id",
    "sid": "sid",
    "iss": "iss",
    "sub": "sub",
    "withoutSid": "without_sid",
    "everyone": "everyone",
    "issuedBefore": "issued_before",
    "expiresAt": "expires_at",
}
"""The names of a revocation's fields in requests, and in Python."""
_DEFAULTS = {field.name: field.default for field in dataclass_fields(Revocation)}
MAX_PAGE = 1_000
REVOKE_FIELDS = {
    "jti": Field(NAME, "The id of one token."),
    "token": Field(STRING, "The token itself. It must be valid, and have a `jti`."),
    "sid": Field(NAME, "A session at an identity provider."),
    "userId": Field({**NAME, "not": {"const": EVERYONE}}, "A user."),
    "iss": Field(NAME, "The issuer of a `sid` or a `sub`."),
    "sub": Field(NAME, "A subject of an identity provider."),
    "withoutSid": Field(BOOLEAN, "True: only tokens of the subject that have no `sid`."),
    "everyone": Field({"const": True}, "Everyone."),
    "issuedBefore": Field(
        UNIX_TIME, "Tokens issued until then are refused, in Unix time; now, if left out. It can't be in the future."
    ),
    "expiresAt": Field(UNIX_TIME, "When none of these tokens can be valid any more, in Unix time, not in the past."),
}
_TIMES = ("issuedBefore", "expiresAt")
_REVOCATION = (
    Shape("RevocationOfTokenId", ("jti",), ("expiresAt",)),
    Shape("RevocationOfToken", ("token",)),
    Shape("RevocationOfSession", ("sid",), ("iss", "expiresAt")),
    Shape("RevocationOfUser", ("userId",), _TIMES),
    Shape("RevocationOfSubject", ("iss", "sub"), ("withoutSid", *_TIMES)),
    Shape("RevocationOfEveryone", ("everyone",), _TIMES),
)
_BODY = fields_body(REVOKE_FIELDS, _REVOCATION)
CURSOR = {"type": "string", "pattern": "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-]{2,3})?$"}
LIST_FIELDS = {
    "after": Field(CURSOR, "The `next` of the page before."),
    "limit": Field(whole_numbers(1, MAX_PAGE), "At most so many; 1,000 if left out."),
}
_LISTED = object_of(
    {
        "revocations": list_of(object_of({name: REVOKE_FIELDS[name].schema for name in FIELDS}, optional=FIELDS)),
        "next": nullable(STRING),
        "total": COUNT,
        "max": COUNT,
        "durable": BOOLEAN,
    }
)
PAGE_STEP = 2_000
"""Keys that are looked at before the time is looked at."""


class _Change(Endpoint):
    """What POST and DELETE share: the fields of a revocation."""

    path = "/revoke/"
    right = Right.REVOKE

    def __init__(self, hub: Hub, tokens: Tokens, limits: Limits) -> None:
        super().__init__(limits.max_body_bytes)
        self._hub = hub
        self._tokens = tokens

    async def _read(self, request: ControlRequest) -> tuple[dict[str, Any], bool]:
        """Return the fields by their names in Python, and True if the request is JSON. Raises InvalidRequest."""
        fields, is_json = await read_fields(request, REVOKE_FIELDS, None, pace_for(request.body))
        return _given(fields, self._tokens), is_json


class Revoke(_Change):
    """`POST /revoke/`: ends open streams, and refuses their tokens from now on."""

    method = "POST"
    description = Description(
        "revoke",
        "End the access of a token, a session, a user, a subject or everyone",
        [
            Answer(
                200,
                "The revocation is stored. If `durable` is false, it does not outlive the process.",
                {
                    **OK,
                    JSON: object_of(
                        {
                            "id": POSITION,
                            "durable": BOOLEAN,
                            "issuedBefore": nullable(UNIX_TIME),
                            "expiresAt": nullable(UNIX_TIME),
                        }
                    ),
                },
            )
        ],
        body=_BODY,
        refusals=(503,),
    )

    async def respond(self, request: ControlRequest) -> Response:
        given, is_json = await self._read(request)
        await self._hub.start()
        now = self._hub.broker.now()
        revocation = self._dated(given, now).limited(self._tokens.max_token_seconds, self._hub.leeway_seconds, now)
        position = await self._hub.revoke_all([revocation])
        logger.info("revocation at %s by %s", position, request.key)
        if not is_json:
            return PlainTextResponse("OK")
        return JSONResponse(
            {
                "id": position,
                "durable": self._hub.broker.outlives_process,
                "issuedBefore": revocation.issued_before,
                "expiresAt": revocation.expires_at,
            }
        )

    @staticmethod
    def _dated(given: dict[str, Any], now: float) -> Revocation:
        """Return the revocation of these fields, with the time before which tokens were issued. Raises InvalidEvent."""
        revocation = Revocation.dated(now, **given)
        before, ends = revocation.issued_before, revocation.expires_at
        if before is not None and before > now + LEEWAY.most:
            raise InvalidRequest(f"issuedBefore {before!r} is in the future: give a Unix time in seconds, at most now")
        if ends is not None and ends <= now:
            raise InvalidRequest(
                f"expiresAt {ends!r} has passed: give the Unix time in seconds after which none of these tokens is "
                "valid, or leave it out"
            )
        return revocation


class TakeBack(_Change):
    """`DELETE /revoke/`: takes a revocation back."""

    method = "DELETE"
    description = Description(
        "takeBackRevocation",
        "Take a revocation back",
        [Answer(200, "It is taken back on all nodes.", {**OK, JSON: object_of({"id": POSITION})})],
        body=_BODY,
        refusals=(404, 503),
    )

    async def respond(self, request: ControlRequest) -> Response:
        given, is_json = await self._read(request)
        position = await self._hub.take_back_key(Revocation.dated(0.0, **given).key)
        if position is None:
            raise UnknownRevocation("there is no such revocation: GET /revoke/ lists those that there are")
        logger.info("revocation taken back at %s by %s", position, request.key)
        return JSONResponse({"id": position}) if is_json else PlainTextResponse("OK")


class ListRevocations(Endpoint):
    """`GET /revoke/`: lists the revocations in force, a page at a time."""

    path = "/revoke/"
    method = "GET"
    right = Right.READ
    description = Description(
        "listRevocations",
        "List the revocations in force",
        [Answer(200, "A page of them.", {JSON: _LISTED})],
        queries(LIST_FIELDS),
        refusals=(503,),
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self._hub = hub

    async def respond(self, request: ControlRequest) -> Response:
        fields = await form_fields(request, FORM, LIST_FIELDS, None)
        after, limit = _key_of(fields.get("after", "")), _limit(fields.get("limit", str(MAX_PAGE)))
        await self._hub.start()
        if not self._hub.is_following:
            raise BrokerUnavailable(self._hub.broker.problem or "the revocations have not been read yet")
        revocations = self._hub.revocations
        keys = await _page(revocations, after, limit + 1)
        listed = [one for key in keys[:limit] if (one := revocations.get(key)) is not None]
        return JSONResponse(
            {
                "revocations": [_to_wire(one) for one in listed],
                "next": _cursor_of(keys[limit - 1]) if len(keys) > limit else None,
                "total": len(revocations),
                "max": MAX_REVOCATIONS,
                "durable": self._hub.broker.outlives_process,
            }
        )


def _given(fields: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """Return the fields of a revocation that the request gives. Raises InvalidRequest."""
    refuse_null(fields)
    if fields.get("userId") == EVERYONE:
        raise InvalidRequest("userId '*' is not supported: to revoke the tokens of all users, give everyone")
    if "token" not in fields:
        return {FIELDS[name]: value for name, value in fields.items()}
    if len(fields) > 1:
        other = next(name for name in fields if name != "token")
        raise InvalidRequest(f"token and {other} are both given: a token needs no other field")
    return _of_token(fields["token"], tokens)


def _of_token(token: Any, tokens: Tokens) -> dict[str, Any]:
    if not isinstance(token, str):
        raise InvalidRequest("token must be a string")
    try:
        claims = tokens.verify(token)
    except TokenError as exc:
        raise InvalidRequest(f"token is not valid: {exc}") from exc
    if claims.jti is None:
        raise InvalidRequest("token has no jti, by which it could be revoked: revoke its userId or sid")
    return {"jti": claims.jti} | ({} if claims.expires_at is None else {"expires_at": claims.expires_at})


def _to_wire(revocation: Revocation) -> dict[str, Any]:
    """Return the fields that were given, by their names in requests."""
    return {name: value for name, field in FIELDS.items() if (value := getattr(revocation, field)) != _DEFAULTS[field]}


async def _page(revocations: Revocations, after: str, count: int) -> list[str]:
    """Return the first `count` keys that follow `after`, in their order."""
    pace = Pace()
    keys = revocations.keys()
    first: list[str] = []
    for start in range(0, len(keys), PAGE_STEP):
        first = nsmallest(count, first + [key for key in keys[start : start + PAGE_STEP] if key > after])
        if pace.is_due:
            await pace.rest()
    return first


def _cursor_of(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def _key_of(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as exc:
        raise InvalidRequest(f"after {cursor[:40]!r} is not a cursor: give the `next` of another page") from exc


def _limit(text: str) -> int:
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidRequest(f"limit {text[:40]!r} is not a number from 1 to {MAX_PAGE}")
    return limit
