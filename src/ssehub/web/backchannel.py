"""`POST /events/backchannel-logout`: an identity provider says that a session, or a user's every session, has ended.

OpenID Connect Back-Channel Logout 1.0. The endpoint is part of the client app, so that the proxy's location for streams
serves it, too. It needs no key: the provider's signature is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import InvalidRequest, TokenError, Unavailable, UnsupportedContent
from ..fanout.refusals import Refusal
from ..fanout.statistics import Logout
from ..hub import Hub
from ..loglimit import limited_logger
from ..revocations import Revocation
from ..tokens import Tokens
from ..tokens.logout import LogoutToken, LogoutTokens
from .addresses import client_of
from .description import Answer, Described, Description, Errors, object_of
from .endpoint import RETRY_AFTER_SECONDS
from .forms import FORM, JSON, urlencoded
from .logins import TokenLogin
from .refusals import Refusals
from .requests import ControlRequest, DroppedBodies, read_body, request_headers
from .schemas import STRING, one_of

logger = limited_logger("ssehub.client")

BACKCHANNEL_LOGOUT = "/events/backchannel-logout"
FIELD = "logout_token"
MAX_BODY_BYTES = 64 * 2**10
_NO_STORE = {"Cache-Control": "no-store"}


_ERROR = object_of(
    {"error": one_of(["invalid_request", "temporarily_unavailable"]), "error_description": STRING},
)


class BackchannelLogout:
    """Responds to `POST`: 200, or 400 with a JSON error (2.7 and 2.8), or 503 if the provider should try again."""

    path = BACKCHANNEL_LOGOUT
    method = "POST"
    description = Description(
        "logOutByProvider",
        "End a session, or every session of a user, at the word of the identity provider",
        [Answer(200, "The session has ended.")],
        body={
            FORM: {
                "type": "object",
                "properties": {FIELD: Described(STRING, "A logout token. Other fields are ignored.")},
                "required": [FIELD],
            }
        },
        refusals=(400, 503),
        errors=Errors("LogoutRefusal", {JSON: _ERROR}),
    )

    def __init__(self, hub: Hub, tokens: Tokens, login: TokenLogin, refusals: Refusals) -> None:
        self._hub = hub
        self._tokens = LogoutTokens(tokens)
        self._max_token_seconds = tokens.max_token_seconds
        self._login = login
        self._refusals = refusals
        self._dropped = DroppedBodies()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = request_headers(scope)
        try:
            body = await read_body(headers, receive, MAX_BODY_BYTES)
        except ClientDisconnect:
            return
        except InvalidRequest as exc:
            await self._dropped.refuse(self._refusal(str(exc), scope), receive, send)
            return
        response = await self._respond(ControlRequest(scope["query_string"], headers, body), scope)
        await response(scope, receive, send)

    async def _respond(self, request: ControlRequest, scope: Scope) -> Response:
        try:
            await self._log_out(_logout_token(request), client_of(scope))
        except (InvalidRequest, TokenError) as exc:
            return self._refusal(str(exc), scope)
        except Unavailable as exc:
            self._hub.count_logout(Logout.UNAVAILABLE)
            self._refusals.refuse_client(exc, scope)
            problem = {"error": "temporarily_unavailable", "error_description": "not possible at present: try again"}
            return JSONResponse(problem, 503, {**_NO_STORE, "Retry-After": RETRY_AFTER_SECONDS})
        return Response(status_code=200, headers=_NO_STORE)

    async def _log_out(self, token: str, client: str) -> None:
        logout = await self._tokens.accept(token)
        try:
            await self._hub.start()
            now, longest = self._hub.broker.now(), self._max_token_seconds
            leeway = self._hub.leeway_seconds
            revocations = [one.limited(longest, leeway, now) for one in _revocations(logout)]
            if new := [one for one in revocations if not self._is_known(one)]:
                await self._hub.revoke_all(new)
        except BaseException:
            self._tokens.forget(logout)
            raise
        if logout.sub is None and not self._login.has_seen_sid:
            self._hub.count_logout(Logout.UNKNOWN_SID)
            logger.warning(
                "back-channel logout from %s names a session by sid only, and no token verified here so far has a sid: "
                "it may end nothing; let the provider put sid into its access tokens, or sub into its logout tokens",
                client,
            )
        else:
            self._hub.count_logout(Logout.DONE)
            logger.info("back-channel logout from %s", client)

    def _is_known(self, revocation: Revocation) -> bool:
        """True if nothing is left to revoke, as when another node has received the token before.

        Revoking it once more would end the streams of those who have logged in since.
        """
        known = self._hub.broker.revocations.get(revocation.key)
        return known is not None and known.extended(revocation) == known

    def _refusal(self, description: str, scope: Scope) -> Response:
        self._hub.count_logout(Logout.REFUSED)
        self._refusals.refuse(Refusal.LOGOUT, scope, description)
        return JSONResponse({"error": "invalid_request", "error_description": description}, 400, _NO_STORE)


def _logout_token(request: ControlRequest) -> str:
    """Return the field of the form (2.5). Other fields are ignored. Raises InvalidRequest."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise UnsupportedContent(f"the body must be {FORM}")
    found = [value for name, value in urlencoded("the body", request.body) if name == FIELD]
    if len(found) != 1:
        raise InvalidRequest(f"{FIELD} is {'given twice' if found else 'missing'}: send it once, in the body")
    return found[0]


def _revocations(logout: LogoutToken) -> Iterator[Revocation]:
    """Yield what the logout ends. A token that names no session counts as one of every session of its `sub`."""
    if logout.sid is not None:
        yield Revocation(iss=logout.iss, sid=logout.sid)
    if logout.sub is not None:
        yield Revocation(iss=logout.iss, sub=logout.sub, without_sid=logout.sid is not None, issued_before=logout.iat)
