"""The bytes that watchers of a run are sent, in the dialect of their clients."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Self

from ..event import encode_fields
from ..fields import json_text
from ..position import Position
from ..runs.entries import RunEvent
from ..runs.model import Outcome, RunState
from .frames import control_event
from .sinks import Chunk

DONE = "[DONE]"
"""The data of the last event of a stream, in the dialect of OpenAI and of the AI SDK."""


class Dialect(Enum):
    """The format that a client understands."""

    EVENTS = "events"
    """Events with types and ids, and the hub's own."""
    AI_SDK = "ai-sdk"
    """`data:` lines alone, which end with `[DONE]`: the UI message stream of Vercel's AI SDK, version 1.

    The client throws at an event with a type, and takes every complete response for a complete message.
    """

    __hash__ = object.__hash__  # Enum's own is a Python function


class Passage(Chunk):
    """Events of a run that follow one another, encoded once for all watchers with one dialect."""

    __slots__ = ("count", "first", "frames", "last", "position", "tally")

    def __init__(self, frames: Sequence[bytes], first: int, log: str) -> None:
        super().__init__(frames[0] if len(frames) == 1 else b"".join(frames))
        self.frames = frames
        self.count = len(frames)
        self.tally = complex(self.count, len(self.data))
        self.first = first
        """The ordinal of its first event."""
        self.last = first + self.count - 1
        self.position = Position(self.last, 0, log)
        """The position of its last event. All watchers that have received it share this object."""

    @classmethod
    def of(cls, events: Sequence[RunEvent], first: int, log: str, dialect: Dialect) -> Self:
        """Encode `events`, of which the first one has the ordinal `first`."""
        if dialect is Dialect.AI_SDK:
            # Clients stop reading at `[DONE]`, and how the run ends is not known yet: the farewell has it.
            frames = [b"" if event.data == DONE else event.encode_data() for event in events]
        else:
            frames = [event.encode(ordinal, log) for ordinal, event in enumerate(events, first)]
        return cls(frames, first, log)

    def after(self, ordinal: int) -> Self:
        """Return the part above `ordinal`, which is not empty."""
        rest = self.frames[ordinal + 1 - self.first :]
        return type(self)(rest, ordinal + 1, self.position.log)


def run_hello(name: str, generation: int, position: Position | None, retry_milliseconds: int | None = None) -> Chunk:
    """Return the first frame of a watcher, which is also sent when another generation of the run begins."""
    data = {"run": name, "generation": generation}
    return control_event("stream-hello", data, position, retry_milliseconds)


def farewell(outcome: Outcome, end: Position, dialect: Dialect) -> Chunk:
    """Return what a watcher that has all events is sent of the end."""
    if dialect is Dialect.AI_SDK:
        text = b""
        if outcome.state is RunState.FAILED:
            error = {"type": "error", "errorText": outcome.error or "the run has failed"}
            text = encode_fields(data=json_text(error))
        elif outcome.state is RunState.STOPPED:
            text = encode_fields(data=json_text({"type": "abort"}))
        return Chunk(text + encode_fields(data=DONE))
    data = {"reason": str(outcome.state)}
    if outcome.error is not None:
        data["error"] = outcome.error
    return control_event("stream-finished", data, end)
