"""The registry of a hub's open streams: sends them the hub's own frames, and is the only place that ends one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from ..claims import Claims
from ..loglimit import limited_logger
from ..position import Position
from .backlogs import OVERRUN, Backlogs
from .clock import Clock
from .comebacks import Turns
from .frames import HEARTBEAT, Batch, control_event, reset
from .history import ResetReason
from .index import Index
from .limits import StreamCounts
from .sinks import CUT_SECONDS, LINGER_SECONDS, Chunk, Sink
from .statistics import Statistics
from .subscriber import FAILED, CloseReason, State, Subscriber
from .tracing import Tracer

logger = limited_logger("ssehub.hub")

REVOKED_SECONDS = 1.0
"""A client whose token was revoked comes back after at least this time. It is then refused, and a browser stops."""
REVOKED_SPREAD_MILLISECONDS = 2_000
"""Few such clients come back over this time, and many as the hub can take them."""
RESTART_SECONDS = 2.0
"""Drained clients come back this long after the drain: by then a restart should be done."""
LIFETIME_SECONDS = 1.0
"""A client whose stream has reached its maximum lifetime comes back after at least this time."""
REPLACED_MILLISECONDS = 600_000
"""A client whose stream was replaced by another one of its user comes back after this time, or a fifth more."""
COMES_BACK = (CloseReason.DRAINED, CloseReason.LIFETIME)
"""The ends after which a client is to come back."""
DRAIN_LINGER_SECONDS = 1.0
"""How much longer than the drain window a client has to read what was written before its stream ended."""

SHOWN = 10
"""Most channels, and most patterns, of a stream that log lines name."""


class Registry:
    """The open streams, and how far they and the log have come.

    Each stream is entered in the index, the backlogs and the clock, and removed from all of them when it ends.
    """

    def __init__(
        self,
        index: Index,
        backlogs: Backlogs,
        clock: Clock,
        statistics: Statistics,
        base: Position,
        turns: Turns,
        monotonic: Callable[[], float],
        tracer: Tracer,
        counts: StreamCounts | None = None,
    ) -> None:
        self.head = base
        """The position up to which the log has been read."""
        self.settled = base
        """Every live subscriber has been written everything up to here that is for it."""
        self.is_sending = False
        """True while a frame is sent, or a part of a replay: what its sink may publish meanwhile has to wait."""
        self.drain_until: float | None = None
        """When the drain window ends, if the hub drains."""
        self._index = index
        self._backlogs = backlogs
        self._clock = clock
        self._statistics = statistics
        self._turns = turns
        self._monotonic = monotonic
        self.tracer = tracer
        self.counts = counts
        """The streams that limits are about; None if there are no limits."""

    def admit(self, claims: Claims, address: str | None, *, watches: bool = False) -> None:
        """Make room for a stream from `address`, where limits apply: end the one that it replaces.

        `watches` says that it is one of a run, which the limit on the streams of a channel is not about. Raises
        StreamRefused.
        """
        if self.counts is not None and address is not None:
            replaced = self.counts.admit(claims, address, watches=watches)
            if replaced is not None:
                self.end(replaced, CloseReason.REPLACED)

    def add(self, subscriber: Subscriber, now: float, wall: float, address: str | None = None) -> None:
        self._index.add(subscriber)
        self._clock.add(subscriber, now, wall)
        if self.counts is not None and address is not None:
            self.counts.add(subscriber, address)
        self._statistics.connected += 1
        subscriber.number = self._statistics.connected
        if self.tracer.is_watched:
            self.tracer.opened(subscriber)
        logger.info("stream opened: %s", _Shown(subscriber))

    def position_of(self, subscriber: Subscriber) -> Position:
        """Return the position up to which everything for `subscriber` has been written."""
        settled, sent = self.settled, subscriber.sent
        is_settled = subscriber.state is State.LIVE and sent < settled and sent.log == settled.log
        return settled if is_settled else sent

    def send(self, subscriber: Subscriber, type: str, data: object, retry_milliseconds: int | None = None) -> None:
        """Send a control event."""
        if subscriber.is_bare:
            return
        position = self.position_of(subscriber)
        self.send_frame(subscriber, control_event(type, data, position, retry_milliseconds), position)

    def send_reset(self, subscriber: Subscriber, reason: ResetReason) -> None:
        """Tell a client that it may have missed events."""
        self._statistics.resets[reason.value] += 1
        if self.tracer.is_watched:
            self.tracer.reset(subscriber, reason.value)
        position = self.position_of(subscriber)
        self.send_frame(subscriber, reset(reason.value, position, for_datastar=subscriber.uses_datastar), position)

    def send_frame(self, subscriber: Subscriber, chunk: Chunk, position: Position | None) -> None:
        if subscriber.state is State.ENDED:
            return
        was_sending, self.is_sending = self.is_sending, True
        has_failed = not subscriber.send(chunk, position)
        self.is_sending = was_sending
        if has_failed:
            self.end_failed(subscriber, FAILED)

    def replay(self, subscriber: Subscriber, batch: Batch) -> int:
        """Write a part of a replay; return what `Subscriber.write` returns."""
        was_sending, self.is_sending = self.is_sending, True
        written = subscriber.write(batch)
        self.is_sending = was_sending
        return written

    def beat(self, subscriber: Subscriber, frames: dict[Position, Chunk]) -> None:
        """Send a heartbeat, or the position if that has moved since the client was last sent it."""
        if subscriber.sink.is_paused or subscriber.state is State.LAGGING:
            return
        position = self.position_of(subscriber)
        if position == subscriber.known_position or subscriber.is_bare:
            chunk = HEARTBEAT
        elif position in frames:
            chunk = frames[position]
        else:
            chunk = frames[position] = control_event("stream-position", {}, position)
        self.send_frame(subscriber, chunk, position)

    def end(self, subscriber: Subscriber, reason: CloseReason) -> None:
        """End one stream. Of several reasons the first counts; one that is not registered here is left alone."""
        if subscriber not in self._index.all:
            return
        self._index.remove(subscriber)
        self._clock.remove(subscriber)
        subscriber.leave()
        if self.counts is not None:
            self.counts.remove(subscriber)
        farewell = None if subscriber.is_bare else self._farewell(subscriber, reason)
        subscriber.reason = reason
        subscriber.enter(State.ENDED)
        if farewell is not None and not subscriber.send(farewell, None):
            _abort(subscriber.sink)
        self.close(subscriber, subscriber.sink, reason)
        self._backlogs.remove(subscriber)  # last, because the farewell may pause the sink
        self._statistics.endings[reason.value] += 1
        seconds = self._monotonic() - subscriber.connected_at
        if self.tracer.is_watched:
            self.tracer.ended(subscriber, reason.value, seconds)
        # A drain ends all streams: the engine logs one line about them.
        if reason is not CloseReason.DRAINED:
            logger.info(
                "stream ended: %s, %.1f s, %d events, %d bytes, %s",
                _Shown(subscriber),
                seconds,
                subscriber.events,
                subscriber.bytes,
                reason.value,
            )

    def revoke(self, subscriber: Subscriber, retry_milliseconds: int | None = None) -> None:
        """End one stream with `stream-revoked`; one that is not registered here is left alone.

        Its client comes back after `retry_milliseconds`, or a fifth more; if that is None, soon.
        """
        if subscriber not in self._index.all:
            return
        if retry_milliseconds is None:
            retry = self._turns.milliseconds(REVOKED_SECONDS) + random.randrange(REVOKED_SPREAD_MILLISECONDS)
        else:
            retry = retry_milliseconds + random.randrange(retry_milliseconds // 5 + 1)
        self.send(subscriber, "stream-revoked", {}, retry)
        self.end(subscriber, CloseReason.REVOKED)

    def end_failed(self, subscriber: Subscriber, failure: int) -> None:
        """`write` or `hold` has returned a failure, which ends this subscriber and no other."""
        if failure == OVERRUN:
            self.end(subscriber, CloseReason.SLOW)
        else:
            _abort(subscriber.sink)
            self.end(subscriber, CloseReason.DISCONNECTED)

    def _farewell(self, subscriber: Subscriber, reason: CloseReason) -> Chunk | None:
        position = self.position_of(subscriber)
        if reason is CloseReason.EXPIRED:
            return control_event("stream-expired", {"expiresAt": subscriber.expires_at}, position)
        if reason is CloseReason.DRAINED:
            return control_event("stream-drain", {}, position, self._turns.milliseconds(self.restart_seconds))
        if reason is CloseReason.LIFETIME:
            return control_event("stream-lifetime", {}, position, self._turns.milliseconds(LIFETIME_SECONDS))
        if reason is CloseReason.REPLACED:
            # A client that came back at once would replace the stream that replaced it, and so on for ever.
            comeback = REPLACED_MILLISECONDS + random.randrange(REPLACED_MILLISECONDS // 5)
            return control_event("stream-replaced", {}, position, comeback)
        return None

    def close(self, subscriber: Subscriber, sink: Sink, reason: CloseReason) -> None:
        """Close `sink`, that of `subscriber`, whose stream has ended for `reason`."""
        try:
            if reason is CloseReason.SLOW:
                _abort(sink)
            else:
                is_drained = reason is CloseReason.DRAINED
                linger = self.drain_seconds_left + DRAIN_LINGER_SECONDS if is_drained else LINGER_SECONDS
                if subscriber.is_bare:
                    cut_after = None if reason is CloseReason.FINISHED else 0.0  # there is no last frame to wait for
                else:
                    cut_after = self.cut_seconds if reason in COMES_BACK else None
                sink.close(linger, cut_after=cut_after)
        except Exception:
            logger.warning("closing a stream failed, so its connection is dropped", exc_info=True)
            _abort(sink)

    @property
    def cut_seconds(self) -> float:
        """How long the last frame of a stream has to arrive before the response is cut."""
        return CUT_SECONDS if self.drain_until is None else min(CUT_SECONDS, self.drain_seconds_left)

    @property
    def restart_seconds(self) -> float:
        """How long it takes until the drain, if there is one, and a restart should be over."""
        return self.drain_seconds_left + RESTART_SECONDS

    @property
    def drain_seconds_left(self) -> float:
        """How much of the drain window is left, 0 if the hub does not drain."""
        return 0.0 if self.drain_until is None else max(0.0, self.drain_until - self._monotonic())


class _Shown:
    """A stream in a log line: its user, its run, a few of its channels and patterns, and where it comes from.

    The text is only made if the line is written: lines over the limit of their rate are not.
    """

    __slots__ = ("_subscriber",)

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber

    def __str__(self) -> str:
        channels, prefixes = self._subscriber.channels, self._subscriber.prefixes
        run = self._subscriber.run_name
        shown = [f"user {self._subscriber.user_id!r}"]
        if run is not None:
            shown.append(f"run {run!r}")
        if channels:
            shown.append(f"channels {_first(channels)}")
        if prefixes:
            shown.append(f"patterns {_first(self._subscriber.patterns)}")
        shown.append(f"from {self._subscriber.origin or 'this process'}")
        return ", ".join(shown)


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _abort(sink: Sink) -> None:
    try:
        sink.abort()
    except Exception:
        logger.warning("dropping a connection failed", exc_info=True)
