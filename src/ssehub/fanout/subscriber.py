"""Subscribers: one open stream each, and the states it goes through.

    state       meaning                                                         next
    REPLAYING   it is being sent what it missed, from history; rounds skip it   LIVE, ENDED
    LIVE        rounds write to it                                              LAGGING, ENDED
    LAGGING     its backlog is over the bound; batches are held for it          LIVE, ENDED
    WATCHING    it is sent a run instead of the hub's log (feeds.py)            ENDED
    ENDED       its sink is closed, and nothing is written any more

A stream begins REPLAYING if there is something to replay, else LIVE; that of a run begins, and stays, WATCHING. The
state changes by `enter` alone.

Two things are independent of it, and belong to the sink: *corked* (the response's head has not been sent, so writing
only adds to the backlog) and *paused* (the connection does not read as fast as it is written to). A paused subscriber
may be LIVE, as long as its backlog stays within the bound.

Invariant: everything up to `sent` that is for this subscriber has been written to its sink, once and in order. `sent`
moves only with a write that succeeded, and every position that the client is shown as an id is at most `sent`, or the
end of a finished round. That is why a client that comes back with such an id has missed nothing below it.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from sys import intern

from ..claims import Claims
from ..grant import WILDCARD, prefixes_of
from ..loglimit import limited_logger
from ..position import Position
from .frames import Batch
from .origin import Origin
from .sinks import Chunk, Sink

logger = limited_logger("ssehub.subscriber")

FAILED = -1
"""Returned by `write` instead of a number of events: writing to the connection raised, so the stream must end."""


class CloseReason(StrEnum):
    """Why a stream ended."""

    DISCONNECTED = "disconnected"
    EXPIRED = "expired"
    SLOW = "slow"
    DRAINED = "drained"
    LIFETIME = "lifetime"
    REVOKED = "revoked"
    REPLACED = "replaced"
    FINISHED = "finished"
    RESTARTED = "restarted"


class State(Enum):
    """The state of one stream; the table is at the head of this file."""

    REPLAYING = "replaying"
    LIVE = "live"
    LAGGING = "lagging"
    WATCHING = "watching"
    ENDED = "ended"

    __hash__ = object.__hash__  # Enum's own is a Python function, which costs more than the rest of a transition


_NEXT: dict[State, tuple[State, ...]] = {
    State.REPLAYING: (State.LIVE, State.ENDED),
    State.LIVE: (State.LAGGING, State.ENDED),
    State.LAGGING: (State.LIVE, State.ENDED),
    State.WATCHING: (State.ENDED,),
    State.ENDED: (),
}


class Subscriber:
    """One open stream: a user on some channels and patterns, and the sink that its bytes are written to."""

    __slots__ = (
        "attached_at",
        "bucket",
        "channels",
        "connected_at",
        "ends_at",
        "expires_at",
        "expiring_at",
        "is_bare",
        "is_due",
        "iss",
        "jti",
        "known_position",
        "lifetime_ends_at",
        "number",
        "origin",
        "prefixes",
        "read_at",
        "reason",
        "sent",
        "sid",
        "sink",
        "state",
        "sub",
        "unread_bytes",
        "user_id",
        "uses_datastar",
        "written",
    )

    def __init__(
        self,
        claims: Claims,
        sink: Sink,
        head: Position,
        sent: Position,
        *,
        uses_datastar: bool = False,
        origin: Origin | None = None,
    ) -> None:
        self.user_id = claims.user_id
        self.channels = claims.channels if len(claims.channels) == 1 else tuple(sorted(set(claims.channels)))
        self.prefixes = prefixes_of(claims.patterns)
        """Of the patterns, without their `*`."""
        self.expires_at = claims.expires_at
        # By these the stream may be revoked. Without the claims themselves, it takes 100 bytes less.
        self.iss = claims.iss if claims.iss is None else intern(claims.iss)  # there are few, and each is long
        self.sub = claims.user_id if claims.sub == claims.user_id else claims.sub
        self.sid = claims.sid
        self.jti = claims.jti
        self.uses_datastar = uses_datastar
        """True if a reset is to be sent in the way that Datastar applies by itself, too."""
        self.is_bare = False
        """True if its client is sent no events of the hub's own, and takes every complete response for a clean end."""
        self.origin = origin
        """Where it comes from; None if that is this process."""
        self.number = 0
        """Counts the streams of this node, from 1; given by Registry."""
        self.written = 0j
        """The events that were written to it, apart from the hub's own, and their bytes, as real and imaginary part.

        One addition counts both, at every write to every stream, for 440 of 9,900 instructions. Two integers take 590,
        two floats 530. Both are exact up to 2**53.
        """
        self.sink = sink
        self.state = State.LIVE if sent == head else State.REPLAYING
        self.reason: CloseReason | None = None
        self.attached_at = head
        """The end of the log when the stream was opened."""
        self.sent = sent
        self.known_position: Position | None = None
        """The position that the client has as its last event id; None if that is a publisher's id."""
        # Kept by Backlogs, by the monotonic clock:
        self.unread_bytes: int | None = None
        """The backlog as it would be if the client had read nothing since it was last seen reading."""
        self.read_at = float("-inf")
        """When the client was last seen to read some of its backlog."""
        # Kept by Clock, by the monotonic clock:
        self.connected_at = 0.0
        self.expiring_at: float | None = None
        self.ends_at: float | None = None
        self.lifetime_ends_at: float | None = None
        self.bucket = 0
        self.is_due = False

    @property
    def patterns(self) -> list[str]:
        return [prefix + WILDCARD for prefix in self.prefixes]

    @property
    def run_name(self) -> str | None:
        """The run that it is sent, None if it is sent the hub's log."""
        return None

    @property
    def events(self) -> int:
        """How many events were written to it, apart from the hub's own."""
        return int(self.written.real)

    @property
    def bytes(self) -> int:
        """The size of these events."""
        return int(self.written.imag)

    def enter(self, state: State) -> None:
        """Change the state. The table above says which state may follow which."""
        assert state in _NEXT[self.state], f"{self.state} cannot be followed by {state}"
        self.state = state

    def leave(self) -> None:
        """The stream is ending. Whoever keeps it in a set of its own removes it there."""

    def write(self, batch: Batch) -> int:
        """Write the part of `batch` that is above `sent`; return its number of events, or FAILED."""
        rest = batch if batch.first > self.sent else batch.after(self.sent)
        if rest is None:
            return 0
        if not self.send(rest, rest.final_position):
            return FAILED
        self.sent = rest.last
        self.written += rest.tally
        return rest.count

    def send(self, chunk: Chunk, position: Position | None) -> bool:
        """Write `chunk`, which leaves the client with `position` as its last event id; return False if that failed."""
        try:
            self.sink.write(chunk)
        except Exception:
            logger.warning("writing to a stream failed, so it ends", exc_info=True)
            return False
        self.known_position = position
        return True

    def start_over(self, base: Position) -> None:
        """Count everything up to `base`, which may be of another log, as sent.

        `sent` stays where it is if it is further on in the same log: what was written is not written again.
        """
        if self.state is State.REPLAYING:
            self.enter(State.LIVE)
        self.attached_at = base
        if self.sent.log != base.log or self.sent < base:
            self.sent = base
