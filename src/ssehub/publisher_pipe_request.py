"""One request to `POST /emit/?stream=1`: which events it has sent, and what the response says of them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .errors import SSEHubError, Unavailable
from .publisher_http import MAX_ANSWER_BYTES, TEMPORARY_STATUSES, Answer, Connection, refusal
from .publisher_request import SIGN_OF_LIFE, Rhythm
from .publisher_route import TryAgain

PATH = "/emit/?stream=1"
HEADERS = {"Content-Type": "application/x-ndjson"}
TRY_AGAIN = (*TEMPORARY_STATUSES, 408, 429)

Result = str | SSEHubError
"""The id of an event, or why the hub refuses it."""


class Kept(NamedTuple):
    """An event as a line of NDJSON. `tell` is called once with its result, or None if there will be none."""

    line: bytes
    tell: Callable[[Result | None], None]


class PipeRequest:
    """A request on `connection`. `on_answer` is called with each event that is answered, before that is told.

    Times are those of the event loop. The hub may be silent for `answer_seconds` while an answer is due.
    """

    def __init__(
        self, connection: Connection, rhythm: Rhythm, answer_seconds: float, on_answer: Callable[[Kept], None]
    ) -> None:
        self.unanswered: deque[Kept] = deque()
        """The events that were sent and have no answer yet, in order."""
        self._connection = connection
        self._url = connection.node.url
        self._rhythm = rhythm
        self._answer_seconds = answer_seconds
        self._on_answer = on_answer
        self._rest = b""
        """What has arrived of a line that is not complete."""
        self._problem: SSEHubError | TryAgain | None = None
        """Why the hub has ended the pipe, or is not a hub."""
        self._loop = asyncio.get_running_loop()
        self._spoken_at = self._loop.time()
        self._silent_since = float("inf")
        """Since when an answer is due, and nothing has arrived."""
        self._unsent_bytes = 0
        """How much the network had not taken when that was looked at last."""

    @property
    def wake_at(self) -> float:
        """When there is something to do, even if there are no more events."""
        return min(self._spoken_at + self._rhythm.life_seconds, self._silent_since + self._answer_seconds)

    @property
    def is_answered(self) -> bool:
        """True if the response has begun, so that nothing on the way collects the whole body first."""
        return self._connection.is_answering

    def begin(self) -> None:
        """Send the head. Any number of `send`, and then `finish`, follow."""
        self._connection.begin("POST", PATH, HEADERS, on_part=self._read)

    def send(self, events: Iterable[Kept]) -> None:
        """Send `events` or, if there are none and it is due, a sign of life, which the hub answers, too."""
        lines = [kept.line for kept in events]
        now = self._loop.time()
        if lines:
            self.unanswered.extend(events)
        elif now < self._spoken_at + self._rhythm.life_seconds:
            return
        self._spoken_at = now
        self._silent_since = min(self._silent_since, now)
        self._connection.write(b"".join(lines) or SIGN_OF_LIFE)
        self._unsent_bytes = self._connection.unsent_bytes

    def require_open(self) -> None:
        """Raise OSError or TryAgain if another request is needed, SSEHubError if that would not help."""
        self._require_no_problem()
        if self._connection.answer is not None:
            self._require_200(self._connection.answer)
            raise ConnectionResetError("the response has ended before the request")
        if self._connection.is_lost:
            raise ConnectionResetError("the connection was lost")
        if self._is_silent():
            raise TimeoutError(f"no answer within {self._answer_seconds:g} s")

    async def finish(self) -> None:
        """End the request, and wait for the end of the response. Raises what `require_open` does."""
        self._connection.end()
        await self._complete()

    async def send_whole(self, events: Iterable[Kept]) -> None:
        """Send a request with these `events` only, and wait for their answers. Raises what `require_open` does."""
        self.unanswered.extend(events)
        body = b"".join([kept.line for kept in events])
        self._connection.begin("POST", PATH, HEADERS, body, self._read)
        await self._complete()

    async def _complete(self) -> None:
        answer = await self._connection.answered(self._answer_seconds)
        self._require_no_problem()
        self._require_200(answer)
        if self.unanswered:
            raise ConnectionResetError("the response has ended without an answer to every event")

    def _require_no_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _require_200(self, answer: Answer) -> None:
        if answer.status in TRY_AGAIN:
            raise TryAgain(f"it responded with {answer.status}: {answer.reason}")
        if answer.status != 200:
            raise refusal(self._url, answer.status, answer.reason)

    def _is_silent(self) -> bool:
        now = self._loop.time()
        if now < self._silent_since + self._answer_seconds:
            return False
        before, self._unsent_bytes = self._unsent_bytes, self._connection.unsent_bytes
        if self._unsent_bytes < before:  # the network is slow
            self._silent_since = now
            return False
        return True

    # Answers

    def _read(self, part: bytes) -> None:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            if line and self._problem is None:
                self._read_line(line)
        if len(self._rest) > MAX_ANSWER_BYTES:
            self._problem = self._not_a_hub(self._rest)
        self._silent_since = self._loop.time() if self.unanswered else float("inf")

    def _read_line(self, line: bytes) -> None:
        result = self._result(line)
        if result is None:
            self._problem = self._problem or self._not_a_hub(line)
        elif not self.unanswered:
            self._problem = self._not_a_hub(line)
        else:
            kept = self.unanswered.popleft()
            self._on_answer(kept)
            kept.tell(result)

    def _result(self, line: bytes) -> Result | None:
        """Return the answer in `line`, None if it is something else, which may be the end of the pipe."""
        try:
            fields: Any = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(fields, dict):
            return None
        if isinstance(id := fields.get("id"), str):
            return id
        status, error = fields.get("status"), fields.get("error")
        if not (isinstance(status, int) and isinstance(error, str)):
            return None
        if "end" not in fields:
            return refusal(self._url, status, error)
        self._problem = (
            TryAgain(f"it has ended the pipe: {error}") if status in TRY_AGAIN else refusal(self._url, status, error)
        )
        return None

    def _not_a_hub(self, line: bytes) -> Unavailable:
        return Unavailable(f"{self._url} is not a hub with pipes: unexpected response {line[:80]!r}")
