"""The part of a hub by which applications write to the log: events, and commands to every hub of a deployment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from .brokers.base import Broker
from .errors import InvalidEvent
from .event import Event
from .fanout.statistics import Statistics
from .fields import json_text, one_or_many
from .lifespan import Lifespan
from .loglimit import limited_logger
from .publication import Disconnect, IdempotencyKey, Publication
from .revocations import Revocation, Revocations

logger = limited_logger("ssehub.hub")


class Publishing(ABC):
    """Writes to the log of `broker`. The hub, which is built on it, says in which lifespan."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._statistics = Statistics()
        self._has_warned = False
        """True since a warning says that revocations are not stored."""

    @property
    @abstractmethod
    def _lifespan_here(self) -> Lifespan | None:
        """The run, if it has started and is that of the running event loop."""

    @abstractmethod
    async def _start_here(self) -> Lifespan:
        """Return the run in the running event loop, after starting it if necessary. Raises what `start` raises."""

    @abstractmethod
    def _running(self) -> Lifespan:
        """Return the run, in whichever event loop. Raises HubClosed if there is none."""

    # Publishing

    async def publish(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str | Sequence[str],
        data: object,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        store: bool = True,
        ttl: float | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Publish one event; return its position once the broker has stored it.

        `data` that is not a string is written as JSON; `retry` is in milliseconds. With `store` False the event is only
        for clients that are connected now; after `ttl` seconds it is no longer replayed. Publishing again with the same
        `idempotency_key` returns the first position and stores nothing.

        Raises InvalidEvent for an event that cannot be sent; IdempotencyConflict if the key was used for another event;
        Overloaded or HubClosed if nothing was stored; BrokerUnavailable if that is not known.
        """
        channels, users = one_or_many(channel), one_or_many(user_id)
        event = Event(channels, users, data=json_text(data), type=type, id=id, retry=retry, store=store, ttl=ttl)
        key = None
        if idempotency_key is not None:
            key = IdempotencyKey.make(idempotency_key, ("", *sorted(channels)), [event])
        return (await self.publish_all([Publication([event], key)]))[0]

    def publish_sync(
        self,
        *,
        channel: str | Sequence[str],
        user_id: str | Sequence[str],
        data: object,
        type: str | None = None,
        id: str | None = None,
        retry: int | None = None,
        store: bool = True,
        ttl: float | None = None,
        idempotency_key: str | None = None,
        timeout_seconds: float = 30.0,
    ) -> str:
        """Do what `publish` does from any other thread. In the hub's own thread this raises WrongEventLoop.

        Raises BrokerUnavailable after `timeout_seconds`; then the event may or may not be stored.
        """
        lifespan = self._running()
        work = self.publish(
            channel=channel,
            user_id=user_id,
            data=data,
            type=type,
            id=id,
            retry=retry,
            store=store,
            ttl=ttl,
            idempotency_key=idempotency_key,
        )
        return lifespan.call(work, timeout_seconds)

    async def publish_events(self, events: Sequence[Event]) -> list[str]:
        """Publish `events`, all or none, and return their positions. Raises what `publish` raises."""
        # Anything else among them would only be noticed by the log, in one commit with the events of others.
        if isinstance(events, Event) or not all([isinstance(event, Event) for event in events]):
            raise InvalidEvent("publish_events takes a list of ssehub.Event: publish takes the fields of one event")
        return await self.publish_all([Publication(events)])

    async def publish_all(self, publications: Sequence[Publication]) -> list[str]:
        """Publish events of which some have idempotency keys, all or none; see `publish_events`."""
        positions = self.publish_at_once(publications)
        if positions is not None:
            return positions
        lifespan = self._lifespan_here
        if lifespan is None:
            lifespan = await self._start_here()
        positions = await lifespan.publish(publications)
        self._statistics.published += len(positions)
        return positions

    def publish_at_once(self, publications: Sequence[Publication]) -> list[str] | None:
        """Do what `publish_all` does if that waits for nothing; otherwise return None, and nothing is done."""
        lifespan = self._lifespan_here
        positions = None if lifespan is None else lifespan.publish_at_once(publications)
        if positions is not None:
            self._statistics.published += len(positions)
        return positions

    async def disconnect(
        self, *, user_id: str | Sequence[str] = (), channel: str | Sequence[str] = (), retry: int | None = None
    ) -> str:
        """End the open streams of these users, on these channels, or both, in this process and every other.

        Streams that hear a channel by a pattern are on it, too. Each ends after everything published before, with
        `stream-revoked`. Browsers come back after `retry` milliseconds, and are served if their token is still valid.
        Returns the position; raises what `publish` raises.
        """
        given = {} if retry is None else {"retry": retry}
        command = Disconnect(one_or_many(user_id), one_or_many(channel), **given)
        return (await self.publish_all([Publication([command])]))[0]

    # Ending access

    async def revoke(
        self,
        *,
        jti: str | None = None,
        user_id: str | None = None,
        sid: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        everyone: bool = False,
        issued_before: float | None = None,
        expires_at: float | None = None,
    ) -> str:
        """End access: of one token (`jti`), user, session (`sid`) or subject of an `issuer`, or of everyone.

        Their open streams end on every node, with `stream-revoked`, whenever their tokens were issued. From then on
        tokens are refused: that one, those of that session, or those of that user, subject or everyone that do not say
        when they were issued, or were issued until `leeway_seconds` after `issued_before` (Unix time; by default now,
        by the log's clock). After `expires_at` (Unix time) none of them is valid any more, and the revocation is
        forgotten; without it, it is kept until it is taken back.

        Returns the position. Raises InvalidEvent; Overloaded if there are 200,000 revocations already; and what
        `publish` raises. Once it has returned, the revocation is stored in whatever the broker stores events in.
        """
        await self._start_here()  # the log's clock may be known only now
        revocation = Revocation.dated(
            self.broker.now(),
            jti=jti,
            user_id=user_id,
            sid=sid,
            iss=issuer,
            sub=subject,
            everyone=everyone,
            issued_before=issued_before,
            expires_at=expires_at,
        )
        return await self.revoke_all([revocation])

    async def revoke_all(self, revocations: Sequence[Revocation]) -> str:
        """Enter `revocations`, all or none; see `revoke`."""
        if not revocations:
            raise InvalidEvent("no revocations given: give at least one")
        await self._start_here()
        if not self.broker.outlives_process and not self._has_warned:
            self._has_warned = True
            logger.warning("revocations end with this process: use a broker that stores them, such as sqlite:///")
        return await self.broker.revoke(revocations)

    async def take_back(
        self,
        *,
        jti: str | None = None,
        user_id: str | None = None,
        sid: str | None = None,
        issuer: str | None = None,
        subject: str | None = None,
        everyone: bool = False,
    ) -> str | None:
        """Remove the revocation of that token, user, session, subject, or of everyone, on every node.

        Returns the position, None if this hub knows of no such revocation. Raises InvalidEvent, and what `publish`
        raises.
        """
        revocation = Revocation.dated(
            0.0, jti=jti, user_id=user_id, sid=sid, iss=issuer, sub=subject, everyone=everyone
        )
        return await self.take_back_key(revocation.key)

    async def take_back_key(self, key: str) -> str | None:
        """Remove the revocation with this `key`; see `take_back`."""
        await self._start_here()
        if key not in self.broker.revocations and self.broker.is_current:
            return None
        return await self.broker.take_back([key])

    @property
    def revocations(self) -> Revocations:
        """The revocations that this hub knows of. Read them only."""
        return self.broker.revocations
