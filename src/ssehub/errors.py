"""Every exception that this package raises on purpose, with the HTTP status that the apps respond with.

SSEHubError
├── InvalidRequest (400)            the request can't be used; the message names the field and what is expected
│   ├── InvalidEvent (400)          the fields don't make a valid event
│   ├── BodyTooLarge (413)          the request body, or one event in it, is over its limit
│   ├── UnsupportedContent (415)    the body's content type, charset or encoding is not supported
│   ├── LineTimeout (408)           a line of a body that is read as it arrives took too long
│   ├── UnknownRevocation (404)     there is no such revocation to take back
│   ├── UnknownRun (404)            there is no run of that name
│   ├── RunConflict (409)           the run is not in the state that the call needs; `reason` says why
│   └── IdempotencyConflict (422)   the idempotency key was used before, for different events
├── RunInterrupted (409)            a run can't be produced any more: raised by its producer's calls, out of its block
│   ├── RunStopped                  it was asked to stop
│   ├── StaleRun                    it was restarted, taken over, deleted, or ended by somebody else
│   └── RunLost                     the store has lost it, or its last events
├── TokenError (401)                a token is missing, malformed, expired, or its signature is wrong
│   └── UnknownKey (401)            no key that verifies tokens has the token's key id and algorithm
├── ControlKeyError (401)           the control key is missing or wrong
├── Forbidden (403)                 the request is not allowed
│   ├── CallerForbidden (403)       it comes from a foreign web page, or from where it must not; `reason` says which
│   ├── KeyForbidden (403)          the control key lacks a right, or may not use a channel
│   └── NotGranted (403)            a client requests a channel that its token does not grant
├── LoginFailed (500)               the login of the host application has raised, or returned something else
├── ConfigError                     a setting can't be used; the command exits with code 2
├── AddressError                    an address can't be bound; the command exits with code 3
├── WrongEventLoop                  the call would block its own event loop, or belongs in another one
├── TooManyRequests (429)           a publisher is over its rate; nothing was stored
└── Unavailable (503)               try again later; the event may or may not be stored
    ├── BrokerUnavailable           the log can't be reached; if so at start, the command exits with code 3
    ├── Overloaded                  too many publishers are waiting, or this one is too fast; nothing was stored
    ├── KeysUnavailable             the keys that verify a token have not been read yet
    ├── HubClosed                   the hub is closed, or is ending its streams; nothing was stored
    └── StreamRefused               a stream can't be opened now; a browser is told to reconnect later
"""

from __future__ import annotations

from enum import StrEnum


class SSEHubError(Exception):
    """Base of all exceptions of this package. `status` is the HTTP status that the apps respond with."""

    status = 500


class InvalidRequest(SSEHubError):
    status = 400


class InvalidEvent(InvalidRequest):
    pass


class BodyTooLarge(InvalidRequest):
    status = 413


class UnsupportedContent(InvalidRequest):
    status = 415


class LineTimeout(InvalidRequest):
    status = 408


class UnknownRevocation(InvalidRequest):
    status = 404


class IdempotencyConflict(InvalidRequest):
    status = 422


class UnknownRun(InvalidRequest):
    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no run {name!r}: create it, or look up its name with GET /runs/")


class ConflictReason(StrEnum):
    """Why a call about a run is refused with 409."""

    OPEN = "open"
    """It can't be created, since there is one that has not ended."""
    STALE = "stale"
    """It has another generation than the call names."""
    PRODUCER = "producer"
    """Another producer appends to it and is alive."""
    SUPERSEDED = "superseded"
    """The same producer has connected again since."""
    OFFSET = "offset"
    """It has fewer events than the producer says: some in between were lost, or never sent."""
    STOPPED = "stopped"
    """It is to stop, or has been stopped."""
    ENDED = "ended"
    """It has ended otherwise."""
    TOO_LARGE = "too-large"
    """It has become too large, and so has failed."""


class RunConflict(InvalidRequest):
    """`generation`, `state` and `events` are the run's, at the moment of the refusal."""

    status = 409

    def __init__(
        self,
        reason: ConflictReason,
        message: str,
        *,
        generation: int,
        state: str,
        events: int,
        error: str | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.generation = generation
        self.state = state
        self.events = events
        self.error = error


class RunInterrupted(SSEHubError):
    """Nothing more can be appended to a run by its producer. `hub.run` interrupts its block with one of these."""

    status = 409


class RunStopped(RunInterrupted):
    pass


class StaleRun(RunInterrupted):
    pass


class RunLost(RunInterrupted):
    pass


class TokenReason(StrEnum):
    """Why a token is refused, as `/metrics` counts it. Clients are never told."""

    MISSING = "missing"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown-key"
    SIGNATURE = "signature"
    TYPE = "type"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    LIFETIME = "lifetime"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    CLAIMS = "claims"
    REVOKED = "revoked"


class TokenError(SSEHubError):
    """`reason` is a member of TokenReason, or its value."""

    status = 401

    def __init__(self, message: str, reason: str = TokenReason.MALFORMED) -> None:
        super().__init__(message)
        self.reason = TokenReason(reason)


class UnknownKey(TokenError):
    """The keys may have been replaced: after they are read again, the token may verify."""

    def __init__(self, message: str) -> None:
        super().__init__(message, TokenReason.UNKNOWN_KEY)


class ControlKeyError(SSEHubError):
    status = 401


class Forbidden(SSEHubError):
    status = 403


class CallerForbidden(Forbidden):
    """`reason` is one of those that `/metrics` counts."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class KeyForbidden(Forbidden):
    pass


class NotGranted(Forbidden):
    def __init__(self, channel: str) -> None:
        super().__init__(
            f"channel {channel!r} is not granted: request only channels that the token grants, or leave channel out to "
            "receive all of them"
        )
        self.channel = channel


class LoginFailed(SSEHubError):
    pass


class ConfigError(SSEHubError):
    pass


class AddressError(SSEHubError):
    pass


class WrongEventLoop(SSEHubError):
    pass


class TooManyRequests(SSEHubError):
    """`wait_seconds` is how long it takes until a request is accepted again."""

    status = 429

    def __init__(self, message: str, wait_seconds: float) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Unavailable(SSEHubError):
    status = 503


class BrokerUnavailable(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class KeysUnavailable(Unavailable):
    pass


class HubClosed(Unavailable):
    pass


class StreamRefused(Unavailable):
    """`reason` is one of those that `/metrics` counts."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
