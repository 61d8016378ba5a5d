"""Pipes on raw sockets, whose bodies are sent bit by bit."""

from __future__ import annotations

import json
import time
from typing import Any, ClassVar

from streams import LAST_CHUNK, RawStream, unchunked


class OpenPipe(RawStream):
    """A pipe that has been opened on a control port. `close_opened` closes it."""

    _opened: ClassVar[list[OpenPipe]] = []

    def __init__(
        self,
        port: int,
        *headers: str,
        query: str = "stream=1",
        kind: str = "application/x-ndjson",
        receive_buffer: int | None = None,
    ) -> None:
        self._opened.append(self)
        has_length = any(header.startswith("Content-Length") for header in headers)
        head = [
            f"POST /emit/?{query} HTTP/1.1",
            "Host: localhost",
            f"Content-Type: {kind}",
            *headers,
            *(() if has_length else ("Transfer-Encoding: chunked",)),
        ]
        super().__init__(port, "\r\n".join([*head, "", ""]), receive_buffer=receive_buffer)

    def send(self, text: str | bytes) -> None:
        """Send a chunk."""
        data = text.encode() if isinstance(text, str) else text
        self.socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))

    def send_event(self, *data: str, **fields: Any) -> None:
        """Send a line for each of `data`, in one chunk."""
        self.send(lines_of(*data, **fields))

    def end_body(self) -> None:
        self.socket.sendall(b"0\r\n\r\n")

    @property
    def status(self) -> int:
        self.read_until(b"\r\n\r\n")
        return int(self.bytes.split(b" ", 2)[1])

    @property
    def text(self) -> bytes:
        """What has arrived of the body."""
        _, _, rest = self.bytes.partition(b"\r\n\r\n")
        return unchunked(rest[: rest.rfind(b"\r\n") + 2])

    def answers(self, count: int, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Return all answers, once there are so many."""
        self.read_until(b"\r\n\r\n", seconds)
        end = time.monotonic() + seconds
        while self.text.count(b"}\n") < count:
            self.socket.settimeout(max(0.01, end - time.monotonic()))
            part = self.socket.recv(65_536)
            assert part, f"the connection ended before {count} answers: {self.bytes[-300:]!r}"
            self.bytes += part
        return [json.loads(line) for line in self.text.splitlines() if line]

    def finish(self, seconds: float = 10.0) -> list[dict[str, Any]]:
        """End the body; return all answers, once the response has ended."""
        self.end_body()
        return self.ended(seconds)

    def ended(self, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Return all answers, once the response has ended."""
        self.read_until(LAST_CHUNK, seconds)
        return [json.loads(line) for line in self.text.splitlines() if line]

    @classmethod
    def close_opened(cls) -> None:
        """Close all that a test has opened."""
        while cls._opened:
            cls._opened.pop().close()


def lines_of(*data: str, user_id: str = "*", channel: str = "chat", **fields: Any) -> str:
    """Return a line for each of `data`."""
    return "".join(
        [json.dumps({"userId": user_id, "channel": channel, "data": text, **fields}) + "\n" for text in data]
    )
