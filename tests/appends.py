"""Appends on raw sockets, whose bodies are sent bit by bit."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import httpx

from streams import RawStream

NDJSON = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
RUN = {"channel": "chat", "userId": "alex"}


def create_run(control_url: str, name: str, **fields: Any) -> dict[str, Any]:
    response = httpx.put(f"{control_url}/runs/{name}", json={**RUN, **fields})
    run: dict[str, Any] = response.raise_for_status().json()
    return run


def run_of(control_url: str, name: str) -> dict[str, Any]:
    run: dict[str, Any] = httpx.get(f"{control_url}/runs/{name}").raise_for_status().json()
    return run


def data_of(control_url: str, name: str) -> list[str]:
    """Return the data of all events of a run."""
    lines = httpx.get(f"{control_url}/runs/{name}/events").raise_for_status().text.splitlines()
    return [json.loads(line)["data"] for line in lines]


class OpenAppend(RawStream):
    """An append with a chunked body, that has been begun. `close_begun` closes it."""

    _begun: ClassVar[list[OpenAppend]] = []

    def __init__(
        self, port: int, name: str, *headers: str, query: str = "", kind: str = NDJSON, version: str = "1.1"
    ) -> None:
        self._begun.append(self)
        has_length = any(header.startswith("Content-Length") for header in headers)
        head = [
            f"POST /runs/{name}{query} HTTP/{version}",
            "Host: localhost",
            f"Content-Type: {kind}",
            *headers,
            *(() if has_length else ("Transfer-Encoding: chunked",)),
        ]
        super().__init__(port, "\r\n".join([*head, "", ""]))

    def send(self, text: str | bytes) -> None:
        """Send a chunk."""
        data = text.encode() if isinstance(text, str) else text
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def send_event(self, *data: str) -> None:
        """Send a line for each of `data`, in one chunk."""
        self.send("".join(json.dumps({"data": text}) + "\n" for text in data))

    def finish(self) -> dict[str, Any]:
        """End the body; return the answer, which must be 200."""
        self.socket.sendall(b"0\r\n\r\n")
        status, body = self.answer()
        assert status == 200, body
        return body

    def answer(self, seconds: float = 10.0) -> tuple[int, dict[str, Any]]:
        """Return the status and the body of the answer as soon as it has arrived."""
        self.read_until(b"\r\n\r\n", seconds)
        head, _, body = self.bytes.partition(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        while len(body) < length:
            body += self.socket.recv(length - len(body))
        return int(head.split(b" ", 2)[1]), json.loads(body)

    @property
    def head(self) -> bytes:
        return self.bytes.partition(b"\r\n\r\n")[0].lower()

    def closes_within(self, seconds: float) -> bool:
        """Return True if the hub closes the connection."""
        self.socket.settimeout(seconds)
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    @classmethod
    def close_begun(cls) -> None:
        """Close all that a test has begun."""
        while cls._begun:
            cls._begun.pop().close()
