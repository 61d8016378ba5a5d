"""The part of a hub that decides if a client gets a stream now and, if not, when it should come back."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence

from .brokers.base import Broker
from .claims import Claims
from .errors import BrokerUnavailable, ConfigError, InvalidRequest, StreamRefused, TokenError, TokenReason, Unavailable
from .fanout.comebacks import Comeback, Turns
from .fanout.engine import Engine
from .fanout.limits import OF_ONE_CLIENT
from .fanout.refusals import Refusal
from .fanout.registry import RESTART_SECONDS
from .fanout.sinks import CUT_SECONDS
from .grant import WILDCARD
from .loglimit import limited_logger
from .publishing import Publishing
from .report import RAISE, Report
from .settings import LEEWAY, StreamLimits, Streams

logger = limited_logger("ssehub.hub")

REFUSED_MILLISECONDS = 5_000
"""Clients that were refused at the same moment reconnect over at least this time."""


class Admission(Publishing):
    """Admits clients to the streams of a hub, which is built on it. Raises ConfigError for `leeway_seconds`."""

    def __init__(
        self, broker: Broker, streams: Streams, stream_limits: StreamLimits, leeway_seconds: float, turns: Turns
    ) -> None:
        super().__init__(broker)
        try:
            LEEWAY.check(leeway_seconds)
        except ValueError as exc:
            raise ConfigError(f"leeway_seconds {leeway_seconds!r}: {exc}") from None
        self.leeway_seconds = leeway_seconds
        self._max_connections = streams.max_connections
        self._allows_all_channels = streams.allow_all_channels
        self.limits_streams = stream_limits.has_any
        """True if streams that are attached with an address may be refused because of how many there are."""
        self._turns = turns
        """When the clients come back that were refused. Those whose streams ended do not wait behind them."""

    @abstractmethod
    async def start(self) -> None:
        """Start in the running event loop, if the hub does not run there yet. Raises Unavailable."""

    @property
    @abstractmethod
    def _engine(self) -> Engine | None:
        """The engine, None while the log has not been read."""

    @property
    @abstractmethod
    def is_draining(self) -> bool:
        """True if the hub is about to stop."""

    @property
    def is_following(self) -> bool:
        """True if the log is being read. A hub that waits for its broker takes no streams yet."""
        return self._engine is not None

    @property
    def is_full(self) -> bool:
        """True if there are as many streams as `max_connections` allows, or memory is short."""
        engine = self._engine
        if engine is None:
            return False
        has_most = self._max_connections is not None and len(engine) >= self._max_connections
        return has_most or engine.pressure.is_short

    @property
    def is_short_of_memory(self) -> bool:
        """True if the process uses more than `max_memory_bytes`, or has until a few seconds ago."""
        return self._engine is not None and self._engine.pressure.is_short

    async def make_ready(self, report: Report = RAISE) -> None:
        """Start at the first use. Reports a StreamRefused, or what `start` raises, if no stream can be opened now."""
        self._check_room(report)
        try:
            await self.start()
        except Unavailable as exc:
            logger.warning("the hub can't start: %s", exc)
            report.fail(exc)
        else:
            self._check_log(report)

    def can_open(self) -> bool:
        """True if a stream can be opened now: `make_ready` would report nothing, and has nothing to start."""
        if self._lifespan_here is None:
            return False
        try:
            self._check_room(RAISE)
            self._check_log(RAISE)
        except StreamRefused:
            return False
        return True

    def _check_room(self, report: Report) -> None:
        if self.is_full:
            if self.is_short_of_memory:
                report.fail(StreamRefused(Refusal.MEMORY, "memory is short"))
            else:
                report.fail(StreamRefused(Refusal.FULL, "the hub has as many streams as it may have"))
        if self.is_draining:
            report.fail(StreamRefused(Refusal.DRAINING, "the hub is draining and about to stop"))

    def _check_log(self, report: Report) -> None:
        if not self.is_following:
            report.fail(StreamRefused(Refusal.UNAVAILABLE, "the log has not been read yet"))
        elif not self.broker.is_current:
            message = "the log cannot be read now, so that revocations may be missing"
            report.fail(StreamRefused(Refusal.UNAVAILABLE, message))

    def check_limits(self, claims: Claims, address: str | None, report: Report) -> bool:
        """Report the limits that keep a stream from being opened. Nothing is counted as opened.

        Returns True if it would end the oldest stream of its user. Without an `address`, its limits are left out.
        """
        counts = self._engine.registry.counts if self._engine is not None else None
        return counts is not None and counts.check(claims, address, report) is not None

    def require_access(self, claims: Claims, report: Report = RAISE) -> None:
        """Report a TokenError if the token of `claims` has been revoked, or grants every channel and none may."""
        if claims.patterns and WILDCARD in claims.patterns and not self._allows_all_channels:
            report.fail(TokenError("the token grants every channel, without allow_all_channels", TokenReason.CLAIMS))
        if self.broker.revocations.refuses(claims, self.leeway_seconds):
            report.fail(TokenError("the token has been revoked", TokenReason.REVOKED))

    def check_patterns(self, patterns: Sequence[str]) -> None:
        """Raise InvalidRequest if no stream of this hub may have one of `patterns`: `*`, unless `allow_all_channels`.

        Everything else about them is checked by `Claims`.
        """
        if patterns and WILDCARD in patterns and not self._allows_all_channels:
            raise InvalidRequest(
                "patterns: '*' would be every channel, which this hub does not allow: give a prefix, such as "
                "'orders.*', or set allow_all_channels"
            )

    def comeback(self, reason: str) -> Comeback:
        """Return how a client that is refused for `reason`, a member of Refusal, should reconnect."""
        registry = self._engine.registry if self._engine is not None else None
        earliest = RESTART_SECONDS if registry is None else registry.restart_seconds
        turn = int(earliest * 1000) if reason in OF_ONE_CLIENT else self._turns.milliseconds(earliest)
        retry = turn + random.randrange(REFUSED_MILLISECONDS)
        if registry is None:
            return Comeback(retry, CUT_SECONDS, None)
        return Comeback(retry, registry.cut_seconds, registry.head)

    def _following(self) -> Engine:
        engine = self._running().engine
        if engine is None:
            raise BrokerUnavailable(self.broker.problem or "the log has not been read yet")
        return engine
