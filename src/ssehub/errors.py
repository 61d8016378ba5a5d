"""Every exception this package raises on purpose, and the HTTP status each becomes.

SSEHubError
├── InvalidRequest (400)        what a caller sent can't be used; the message names the field and what would do
│   ├── InvalidEvent (400)      it can't be an event
│   ├── BodyTooLarge (413)      the request body is over its bound
│   ├── UnsupportedContent (415)  the body is of a type we don't read
│   └── IdempotencyConflict (422)  an idempotency key was used for something else
├── TokenError (401)            a token is missing, broken, expired or signed by somebody else
├── ControlKeyError (401)       the control key is missing or wrong
├── Forbidden (403)             a foreign web page or host asks the control app
├── ConfigError                 a setting can't be used; the command exits 2
├── AddressError                an address can't be bound; the command exits 3
├── WrongEventLoop              a call that would block its own event loop, or belongs into another one
└── Unavailable (503)           try again later; the event may or may not be stored
    ├── BrokerUnavailable       the log can't be reached; at its start the command exits 3
    ├── Overloaded              too many publishers wait already; nothing was stored
    └── HubClosed               the hub has ended; nothing was stored
"""

from __future__ import annotations


class SSEHubError(Exception):
    """The base of all. `status` is the HTTP status that the apps answer with."""

    status = 500


class InvalidRequest(SSEHubError):
    status = 400


class InvalidEvent(InvalidRequest):
    pass


class BodyTooLarge(InvalidRequest):
    status = 413


class UnsupportedContent(InvalidRequest):
    status = 415


class IdempotencyConflict(InvalidRequest):
    status = 422


class TokenError(SSEHubError):
    status = 401


class ControlKeyError(SSEHubError):
    status = 401


class Forbidden(SSEHubError):
    status = 403


class ConfigError(SSEHubError):
    pass


class AddressError(SSEHubError):
    pass


class WrongEventLoop(SSEHubError):
    pass


class Unavailable(SSEHubError):
    status = 503


class BrokerUnavailable(Unavailable):
    pass


class Overloaded(Unavailable):
    pass


class HubClosed(Unavailable):
    pass
