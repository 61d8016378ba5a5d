"""One call of the control app: when it is sent again, and how its response is read."""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from .errors import InvalidRequest, Unavailable
from .publisher_http import TEMPORARY_STATUSES, refusal
from .trust import tls_problem

FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.5
LONGEST_RETRY_AFTER_SECONDS = 60.0
"""A server that asks for a longer wait is not called again."""
MAX_TIMEOUTS = 3
"""How many attempts of a call may end without a response in time: each takes seconds."""
TOO_MANY_REQUESTS = 429
NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)

Outcome = httpx.Response | httpx.HTTPError


class Call(NamedTuple):
    """One request. `is_repeatable` says that sending it again does nothing twice."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = {}
    is_repeatable: bool = True

    def may_be_repeated(self, outcome: Outcome) -> bool:
        """True if another attempt may succeed, and can't do anything twice."""
        if isinstance(outcome, httpx.HTTPError):
            return (self.is_repeatable or isinstance(outcome, NOT_CONNECTED)) and tls_problem(outcome) is None
        if outcome.status_code == TOO_MANY_REQUESTS:  # nothing was stored
            return True
        return self.is_repeatable and outcome.status_code in TEMPORARY_STATUSES


class Attempts:
    """The attempts of one call: decides after each of them whether there is another one, and when."""

    def __init__(self, call: Call, retries: int) -> None:
        self.failed = 0
        self._call = call
        self._retries = retries
        self._timeouts = 0

    def wait_after(self, outcome: Outcome) -> float | None:
        """Return how many seconds to wait before the next attempt, or None if `outcome` is that of the call.

        Each wait is twice as long as the one before, up to LONGEST_WAIT_SECONDS and varied at random, or as long as the
        server asks in `Retry-After`.
        """
        self._timeouts += isinstance(outcome, httpx.TimeoutException)
        if self.failed >= self._retries or self._timeouts >= MAX_TIMEOUTS or not self._call.may_be_repeated(outcome):
            return None
        wait = min(FIRST_WAIT_SECONDS * 2.0**self.failed, LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25)
        asked = 0.0 if isinstance(outcome, httpx.HTTPError) else _retry_after(outcome)
        if asked > LONGEST_RETRY_AFTER_SECONDS:
            return None
        self.failed += 1
        return max(wait, asked)


def problem_of(outcome: Outcome) -> str:
    """Return why an attempt failed, in a few words."""
    if isinstance(outcome, httpx.HTTPError):
        return tls_problem(outcome) or str(outcome) or type(outcome).__name__
    return f"it responded with {outcome.status_code}"


def read(url: str, outcome: Outcome) -> dict[str, Any]:
    """Return the JSON object that a hub responds with; its missing fields raise Unavailable, too.

    Raises what `refusal` returns if the hub refuses the call, and Unavailable if it can't be reached or is no hub.
    """
    if isinstance(outcome, NOT_CONNECTED):
        raise Unavailable(f"{url} can't be reached ({problem_of(outcome)}): nothing was sent") from outcome
    if isinstance(outcome, httpx.HTTPError):
        kind = type(outcome).__name__
        raise Unavailable(f"no response from {url} ({kind}): the request may or may not be carried out") from outcome
    if not outcome.is_success:
        raise refusal(url, outcome.status_code, _reason(outcome))
    try:
        return _Fields(outcome.json() if outcome.content else {})
    except (TypeError, ValueError):
        raise Unavailable(f"{url} is not a hub: unexpected response {outcome.text[:80]!r}") from None


class _Fields(dict[str, Any]):
    """The JSON object that a hub responds with. A missing field raises Unavailable."""

    def __missing__(self, name: str) -> Any:
        raise Unavailable(f"not a hub: the response has no field {name}")


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(response.text.split())[:500]


def _retry_after(response: httpx.Response) -> float:
    """Return for how many seconds the server asks to wait (RFC 9110, section 10.2.3), 0 if it does not."""
    text = response.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def json_body(value: object) -> bytes:
    """Raises InvalidRequest for values that JSON can't have."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the event can't be written as JSON ({exc}): use values that JSON supports") from exc
