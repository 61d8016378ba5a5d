"""httpx-sse. It does not reconnect: this program does, with the id and the `retry` of the last event, like its README.

The README retries after `httpx.ReadError` only. A response that is cut raises `httpx.RemoteProtocolError`, and a server
that is away `httpx.ConnectError`. All of them are `httpx.TransportError`.
"""

from __future__ import annotations

import time

import httpx
from httpx_sse import connect_sse
from report import URL, ended, error, message, opened

last_id, retry_seconds = "", 1.0
with httpx.Client(timeout=httpx.Timeout(5, read=60)) as client:
    while True:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        try:
            with connect_sse(client, "GET", URL, headers=headers) as source:
                source.response.raise_for_status()
                opened()
                for event in source.iter_sse():
                    message(event.event, event.id, event.data)
                    last_id = event.id
                    if event.retry is not None:
                        retry_seconds = event.retry / 1000
            error("the response has ended")
        except httpx.TransportError as exc:
            error(exc)
        except httpx.HTTPError as exc:
            ended(exc)
        time.sleep(retry_seconds)
