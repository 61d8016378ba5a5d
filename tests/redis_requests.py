"""Requests to hubs that run as processes, and what their streams have received."""

from __future__ import annotations

import contextlib

import httpx

from conftest import RunningHub, wait_until
from streams import RawStream


def fields(**values: object) -> dict[str, object]:
    """Return the JSON body of an event for everyone on the channel `chat`."""
    return {"userId": "*", "channel": "chat", **values}


def emit(hub: RunningHub, data: str) -> httpx.Response:
    with _client() as client:
        return client.post(f"{hub.control_url}/emit/", json=fields(data=data))


def status(hub: RunningHub, path: str) -> int:
    with _client() as client:
        return client.get(f"{hub.control_url}/{path}").status_code


def _client() -> httpx.Client:
    return httpx.Client(timeout=10, verify=False)  # loading the certificates would take 20 ms each time


def wait_until_ready(*hubs: RunningHub) -> None:
    wait_until(lambda: all(status(hub, "readyz") == 200 for hub in hubs))


def received(stream: RawStream) -> list[tuple[str, str]]:
    """Return the id and data of every event that has been read from the stream."""
    return [(event.id, event.data) for event in stream.events if not event.event.startswith("stream-")]


def data_of(stream: RawStream) -> list[str]:
    return [data for _, data in received(stream)]


def heartbeats(stream: RawStream) -> int:
    """Read what has arrived so far and return how many heartbeats the stream has had."""
    stream.socket.settimeout(0.01)
    with contextlib.suppress(TimeoutError):
        while data := stream.socket.recv(65_536):
            stream.bytes += data
    return stream.bytes.count(b": ping\n") + stream.bytes.count(b"event: stream-position\n")
