"""Reports: reasons to refuse a stream are raised as they are found, or collected, to explain all of them.

The functions that decide whether a client gets a stream tell a report of each reason not to. They go on after that
where they can, so they must not rely on what has just failed. What can't be gone on from is raised in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from .errors import SSEHubError, TokenReason


class Check(StrEnum):
    """What has to be right before a client hears anything, in the order in which it is looked at."""

    FORMAT = "format"
    ALGORITHM = "algorithm"
    SIGNATURE = "signature"
    TYPE = "type"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    CLAIMS = "claims"
    LIFETIME = "lifetime"
    NOT_BEFORE = "not-before"
    EXPIRY = "expiry"
    REVOCATION = "revocation"
    GRANT = "grant"
    READINESS = "readiness"
    LIMITS = "limits"
    CORS = "cors"


TOKEN_CHECKS = tuple(Check)[: list(Check).index(Check.REVOCATION)]
"""Those that the token itself has to pass."""
CHECK_OF_REASON: Mapping[TokenReason, Check] = {
    TokenReason.MALFORMED: Check.FORMAT,
    TokenReason.ALGORITHM: Check.ALGORITHM,
    TokenReason.UNKNOWN_KEY: Check.SIGNATURE,
    TokenReason.SIGNATURE: Check.SIGNATURE,
    TokenReason.TYPE: Check.TYPE,
    TokenReason.ISSUER: Check.ISSUER,
    TokenReason.AUDIENCE: Check.AUDIENCE,
    TokenReason.CLAIMS: Check.CLAIMS,
    TokenReason.LIFETIME: Check.LIFETIME,
    TokenReason.NOT_YET_VALID: Check.NOT_BEFORE,
    TokenReason.EXPIRED: Check.EXPIRY,
    TokenReason.REVOKED: Check.REVOCATION,
}
"""The check that a token fails which is refused for this reason."""


class Report:
    """Is told of each reason to refuse a stream. This one raises the first, as a request needs it."""

    __slots__ = ()

    def fail(self, error: SSEHubError) -> None:
        try:
            raise error
        finally:
            del error  # it refers to this frame by its traceback: a cycle, which only the collector would remove


RAISE = Report()


class Findings(Report):
    """Collects the reasons to refuse a stream, and what is known about each check."""

    __slots__ = ("errors", "facts", "skipped")

    def __init__(self) -> None:
        self.errors: list[SSEHubError] = []
        """The first of them is the one that a request would be refused for."""
        self.facts: dict[Check, str] = {}
        """The checks that were reached, and what was looked at there, for a reader: "" if there is nothing to add."""
        self.skipped: dict[Check, str] = {}
        """Why a check was not made, if that is not because of an error before it."""

    def fail(self, error: SSEHubError) -> None:
        self.errors.append(error)

    def skip(self, check: Check, why: str) -> None:
        self.facts.pop(check, None)
        self.skipped[check] = why
