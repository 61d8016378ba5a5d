"""launchdarkly-eventsource, with an `error_strategy`: by default it does not reconnect."""

from __future__ import annotations

from ld_eventsource import SSEClient
from ld_eventsource.actions import Event, Fault, Start
from ld_eventsource.config import ErrorStrategy
from ld_eventsource.errors import HTTPStatusError
from report import URL, ended, error, message, opened


def decide(exc: Exception | None) -> tuple[bool, None]:
    is_refused = isinstance(exc, HTTPStatusError) and 400 <= exc.status < 500
    return ErrorStrategy.FAIL if is_refused else ErrorStrategy.CONTINUE, None


try:
    for action in SSEClient(URL, error_strategy=ErrorStrategy.from_lambda(decide)).all:
        if isinstance(action, Event):
            message(action.event, action.last_event_id, action.data)
        elif isinstance(action, Start):
            opened()
        elif isinstance(action, Fault):
            error(action.error or "the response has ended")
except Exception as exc:
    ended(exc)
ended("the iteration is over")
