"""Parts of the fan-out, built for tests that need no hub: positions, frames, batches and subscribers."""

from __future__ import annotations

from typing import Any

from fakes import FakeSink
from ssehub.claims import Claims
from ssehub.event import Event
from ssehub.fanout.frames import Batch, Frame
from ssehub.fanout.subscriber import Subscriber
from ssehub.position import Position

LOG = "testlog1"
BASE = Position(1_000, 0, LOG)


def at(number: int) -> Position:
    """Return the position of the event of this number in the log; that of event 0 is `BASE`."""
    return BASE._replace(milliseconds=BASE.milliseconds + number)


def frame(
    number: int, *channels: str, users: tuple[str, ...] = ("*",), arrived_at: float = 0.0, **fields: Any
) -> Frame:
    """Return event `number`, on `chat` if no channel is named. `fields` are those of `Event`; `data` is its number."""
    content = fields if "payload" in fields else {"data": str(number), **fields}
    return Frame(at(number), Event(channels or ("chat",), users, **content), arrived_at)


def batch(*numbers: int, data: str | None = None) -> Batch:
    """Return the events of these numbers as the batch of a round that ends with the last of them."""
    frames = [frame(number, data=str(number) if data is None else data) for number in numbers]
    return Batch(frames, frames[-1].position)


def subscriber(
    user_id: str = "alex",
    *channels: str,
    patterns: tuple[str, ...] = (),
    sink: FakeSink | None = None,
    sent: Position = BASE,
    head: Position = BASE,
    expires_at: float | None = None,
) -> Subscriber:
    """Return a subscriber, on `chat` if no channel or pattern is named."""
    channels = channels or (() if patterns else ("chat",))
    return Subscriber(Claims(user_id, channels, expires_at, patterns=patterns), sink or FakeSink(), head, sent)
