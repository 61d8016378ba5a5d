"""requests-sse, as its README shows."""

from __future__ import annotations

import requests
from report import URL, ended, error, message, opened
from requests_sse import EventSource

try:
    with EventSource(URL, on_open=opened, on_error=lambda: error("on_error was called")) as source:
        for event in source:
            message(event.type, event.last_event_id, event.data)
except requests.RequestException as exc:
    ended(exc)
ended("the iteration is over")
