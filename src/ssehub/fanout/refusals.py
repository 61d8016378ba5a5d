"""Reasons to refuse: why a request to an app, or a connection to a server, gets something else than it asked for.

docs/refusals.md explains all of them. Those of tokens are in `ssehub.errors.TokenReason`.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Why the client app refused a request whose token, if it needs one, is valid."""

    FULL = "full"
    MEMORY = "memory"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"
    KEYS = "keys"
    USER = "user"
    ADDRESS = "address"
    CHANNEL = "channel"
    ADDRESS_RATE = "address-rate"
    RATE = "rate"
    RUN_WAITS = "run-waits"
    NOT_GRANTED = "not-granted"
    UNKNOWN_RUN = "unknown-run"
    ORIGIN = "origin"
    """The browser refuses: it keeps the response from the page."""
    PAGE = "page"
    FORBIDDEN = "forbidden"
    CONFLICT = "conflict"
    INVALID = "invalid"
    TOO_LARGE = "too-large"
    NOT_FOUND = "not-found"
    METHOD = "method"
    LOGOUT = "logout"
    FAILED = "failed"
    """The login of the host application has raised."""


class ControlRefusal(StrEnum):
    """Why the control app refused a request."""

    KEY = "key"
    """It has no control key, or one that is not known."""
    KEY_FORBIDDEN = "key-forbidden"
    PAGE = "page"
    HOST = "host"
    FORWARDED = "forwarded"
    REACHABLE = "reachable"
    """Without a control key: other machines can reach the address that was called."""
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"
    TOO_LARGE = "too-large"
    TIMEOUT = "timeout"
    CONFLICT = "conflict"
    NOT_FOUND = "not-found"
    METHOD = "method"
    RATE = "rate"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    UNAVAILABLE = "unavailable"


class ConnectionRefusal(StrEnum):
    """Why a server ended a connection, or refused a request before its app was called."""

    FULL = "full"
    """It made room for another connection."""
    MEMORY = "memory"
    MALFORMED = "malformed"
    UNSUPPORTED = "unsupported"
    HEAD_TOO_LARGE = "head-too-large"
    BODY_TOO_LARGE = "body-too-large"
    TIMEOUT = "timeout"
    UNREAD = "unread"
    PIPELINED = "pipelined"
    PLAIN_HTTP = "plain-http"
    TLS = "tls"
    PREAMBLE = "preamble"


PORTS = ("client", "control")
"""The ports of which connections are counted."""
