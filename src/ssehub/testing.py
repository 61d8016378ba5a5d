"""For the tests of projects that publish: a hub on a clock of its own, and subscribers that record what they get.

    async def test_order_is_announced(sse_hub):
        recorded = await sse_hub.record(channel="orders", user_id="alex")
        await place_order(sse_hub)
        await sse_hub.flush()
        assert recorded.messages[0].type == "order"

`sse_hub` is a pytest fixture that comes with ssehub: a `ManualHub`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from .claims import Claims
from .fanout.sinks import Chunk, Owner
from .fanout.subscriber import CloseReason, Subscriber
from .fields import one_or_many
from .hub import Hub
from .subscription import Message, MessageReader, Start


class ManualClock:
    """A wall clock (Unix time) and a monotonic one, in seconds, that stand still until told."""

    def __init__(self, wall: float = 1_750_000_000.0) -> None:
        self.wall = wall
        self.monotonic = 1_000.0

    def pass_seconds(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


class Recording:
    """One subscriber, and all that it was given."""

    def __init__(self) -> None:
        self.owner: Owner | None = None
        self.is_paused = False
        self.backlog = 0
        self.messages: list[Message] = []
        """What a page would be shown, in-band events among it."""
        self.text = ""
        """The stream, heartbeats and all."""
        self.subscriber: Subscriber | None = None
        self._reader = MessageReader()

    @property
    def reason(self) -> CloseReason | None:
        """Why the stream has ended, None as long as it has not."""
        return self.subscriber.reason if self.subscriber is not None else None

    def write(self, chunk: Chunk) -> None:
        text = chunk.data.decode()
        self.text += text
        self.messages.extend(self._reader.read(text))

    def close(self, linger_seconds: float = 0.0) -> None:
        self.owner = None

    def abort(self) -> None:
        self.close()


class ManualHub(Hub):
    """A hub whose time passes only by `pass_seconds`. It starts at its first use."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        super().__init__(now=lambda: self.clock.wall, monotonic=lambda: self.clock.monotonic, **settings)

    def _start_clock(self, loop: asyncio.AbstractEventLoop) -> None:
        """No timer: `pass_seconds` is what moves this hub's clock."""

    async def record(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str,
        expires_at: float | None = None,
        cursor: str | None = None,
        since: str | None = None,
    ) -> Recording:
        """A subscriber of these channels who records everything from now on, or from `cursor` or `since` on."""
        await self.start()
        recording = Recording()
        claims = Claims(user_id, one_or_many(channel), expires_at)
        recording.subscriber = self.attach(claims, recording, Start.parse(cursor, since))
        return recording

    async def pass_seconds(self, seconds: float) -> None:
        """Let time pass, with all that it brings: heartbeats, expiry, the end of streams that don't read."""
        await self.start()
        left = seconds
        while left > 0:
            step = min(left, self._clock.tick_seconds)
            self.clock.pass_seconds(step)
            self._clock.advance()
            left -= step
        await self.flush()
