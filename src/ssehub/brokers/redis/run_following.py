"""The runs that are followed on this node: their last known state, and their listeners.

    following   what happens
    unsynced    the run is looked up as soon as its channel is heard; messages wait until then
    synced      each message changes the run, and is told

A message that does not fit what is known, or that has left out its events since they are large, makes it unsynced. So
does the loss of the Pub/Sub connection. Then listeners are told what they have not been told.

Redis may lose what it has published already. Ordinals would then be used again for other events. So the node remembers
the last event that it told, and asks for a new log if Redis has another event with that ordinal, or none.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from ...errors import BrokerUnavailable, Unavailable
from ...runs.followers import Followers
from ...runs.model import Run, RunError, RunState
from ...runs.store import RunListener
from ..numbering import new_log_name
from .run_calls import CALL_SECONDS, Calls
from .run_channels import Channels
from .run_wire import CLAIM, LOOK, Message, load_events, parse_run

logger = logging.getLogger("ssehub.brokers.redis")

LOOK_BYTES = 64 * 2**10
"""Events that listeners have missed are told to them if they are no larger. Otherwise they read them."""
MAX_PENDING = 1_000
RETRY_SECONDS = 0.5


class Following:
    """One name that is followed here."""

    __slots__ = ("digest", "is_new", "name", "pending", "run", "synced", "task")

    def __init__(self, name: str) -> None:
        self.name = name
        self.run: Run | None = None
        """The run as its listeners were told, or None if there is none."""
        self.digest: int | None = None
        """The hash of its last event."""
        self.is_new = True
        """True until it is first synced: listeners are then told nothing."""
        self.synced = asyncio.Event()
        self.pending: list[Message] = []
        """Messages that have arrived while the run is being looked up."""
        self.task: asyncio.Task[None] | None = None
        """Looks it up."""


class Followings:
    """The names that are followed on this node. Built within `RedisBroker.run`, in the event loop that it works in."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._followers = Followers()
        self._by_name: dict[str, Following] = {}
        self._channels: Channels | None = None

    def __len__(self) -> int:
        return len(self._by_name)

    def connect(self, channels: Channels) -> None:
        """Hear of runs by `channels`, which call `on_message`, `on_subscribed` and `on_lost`."""
        self._channels = channels

    # Listeners

    async def follow(self, name: str, listener: RunListener) -> Run | None:
        """See `RunStore.follow`. Raises BrokerUnavailable or Overloaded."""
        following = self._by_name.get(name)
        if following is None:
            following = self._by_name[name] = Following(name)
            self._connected().subscribe(name)
        self._followers.add(name, listener)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await following.synced.wait()
        except TimeoutError:
            self.unfollow(name, listener)
            raise BrokerUnavailable("no reply from Redis: the run can't be followed at present") from None
        except BaseException:
            self.unfollow(name, listener)
            raise
        return following.run

    def unfollow(self, name: str, listener: RunListener) -> None:
        self._followers.remove(name, listener)
        if name not in self._followers and (following := self._by_name.pop(name, None)) is not None:
            self._connected().unsubscribe(name)
            if following.task is not None:
                following.task.cancel()

    def _connected(self) -> Channels:
        assert self._channels is not None, "connect comes first"
        return self._channels

    # What the channels report

    def on_message(self, name: str, content: bytes) -> None:
        following = self._by_name.get(name)
        if following is None:
            return
        if content == LOOK:
            self._look_up(following)
            return
        if content.startswith(CLAIM):
            self._followers.claimed(name, content.removeprefix(CLAIM).decode(errors="replace"))
            return
        try:
            message = Message.parse(content)
        except ValueError:
            logger.warning("ignoring a message about run %r, which was not sent by ssehub", name)
            return
        if not following.synced.is_set():
            following.pending.append(message)
            if len(following.pending) > MAX_PENDING and following.task is not None:
                following.pending.clear()
                self._look_up(following)
        elif not self._apply(following, message):
            self._look_up(following)

    def on_subscribed(self, name: str) -> None:
        following = self._by_name.get(name)
        if following is not None:
            following.pending.clear()
            self._look_up(following)

    def on_lost(self) -> None:
        for following in self._by_name.values():
            following.synced.clear()
            if following.task is not None:
                following.task.cancel()

    def look_up_all(self) -> None:
        """Look up every run that was up to date."""
        for following in self._by_name.values():
            if following.synced.is_set():
                self._look_up(following)

    def close(self) -> None:
        self.on_lost()

    # Messages

    def _apply(self, following: Following, message: Message) -> bool:
        """Change the run as `message` says, and tell it. Returns False if it has to be looked up."""
        run = following.run
        if run is None:
            return message.is_gone
        if (message.generation, message.log) != (run.generation, run.log):
            return False
        if message.is_gone:
            self._vanish(following, run, message.state, message.error, message.ended_at)
            return True
        entries = message.entries
        if message.added != len(entries) or message.events != run.events + len(entries):
            return False
        first = run.events + 1
        run.state, run.error, run.ended_at = message.state, message.error, message.ended_at
        run.events, run.bytes = message.events, message.size
        if entries:
            following.digest = hash(entries[-1])
        self._followers.advanced(run, first, load_events(entries))
        return True

    def _vanish(
        self, following: Following, run: Run, state: RunState, error: str | None, ended_at: float | None
    ) -> None:
        run.state, run.error, run.ended_at = state, error, ended_at
        following.run = following.digest = None
        self._followers.vanished(run)

    # Looking up

    def _look_up(self, following: Following) -> None:
        """Begin to look the run up, or begin anew."""
        following.synced.clear()
        if following.task is not None:
            following.task.cancel()
        following.task = asyncio.create_task(self._sync(following))

    async def _sync(self, following: Following) -> None:
        """Look the run up until what is known of it is up to date."""
        while True:
            try:
                is_current = await self._look(following) and self._catch_up(following)
            except Unavailable:
                is_current = False
                await asyncio.sleep(RETRY_SECONDS * random.uniform(0.2, 1.0))
            except Exception:
                logger.exception("unexpected error while looking up run %r: trying again", following.name)
                is_current = False
                await asyncio.sleep(RETRY_SECONDS)
            if is_current:
                following.is_new = False
                following.task = None
                following.synced.set()
                return

    def _catch_up(self, following: Following) -> bool:
        """Apply the messages that have arrived meanwhile. Returns False if the run has to be looked up again."""
        pending, following.pending = following.pending, []
        for message in pending:
            if not _is_known(message, following.run) and not self._apply(following, message):
                return False
        return True

    async def _look(self, following: Following) -> bool:
        """Look the run up, and tell what has changed. Returns False if it has to be looked up again."""
        run = following.run
        log, told = ("", 0) if run is None else (run.log, run.events)
        most = 0 if following.is_new else LOOK_BYTES
        arguments = (following.name, log, max(1, told), most)
        reply = await self._calls.call("look", *arguments, reply_size=most // 4, is_read=True)
        if reply[1] is None:
            if run is not None:
                is_end = run.state.is_end
                state, error = (run.state, run.error) if is_end else (RunState.FAILED, RunError.DELETED)
                self._vanish(following, run, state, error, run.ended_at)
            return True
        _, record, _, last, entries, connection = reply
        if connection is not None and not following.is_new:  # the message may have been lost
            self._followers.claimed(following.name, connection.decode())
        found = parse_run(following.name, record)
        if run is None or found.log != run.log:
            following.run, following.digest = found, None if last is None else hash(last)
            if not following.is_new:
                self._tell(found, entries)
            return True
        if told and not await self._has_kept(following, found, entries):
            await self._calls.call("lost", following.name, run.log, new_log_name())
            return False
        if _is_changed(run, found):
            _update(run, found)
            following.digest = None if last is None else hash(last)
            self._tell(run, entries[1:] if told else entries)
        return True

    async def _has_kept(self, following: Following, found: Run, entries: Sequence[bytes]) -> bool:
        """True if the last event that was told is there, with the same ordinal."""
        assert following.run is not None
        told = following.run.events
        if found.events < told:
            return False
        if not entries:
            reply = await self._calls.call("read", following.name, found.log, told - 1, 1, is_read=True)
            entries = reply[1] if reply[0] == b"ok" else ()
        return not entries or following.digest is None or hash(entries[0]) == following.digest

    def _tell(self, run: Run, entries: Sequence[bytes]) -> None:
        self._followers.advanced(run, run.events + 1 - len(entries), load_events(entries))


def _is_known(message: Message, run: Run | None) -> bool:
    """True if `run`, which was looked up after `message` may have been sent, shows what that says."""
    if run is None:
        return message.is_gone
    if message.generation < run.generation:
        return True
    if message.is_gone or (message.generation, message.log) != (run.generation, run.log):
        return False
    return message.events <= run.events and _rank(message.state) <= _rank(run.state)


def _rank(state: RunState) -> int:
    return 2 if state.is_end else int(state is RunState.STOPPING)


def _is_changed(run: Run, found: Run) -> bool:
    return (run.generation, run.state, run.events) != (found.generation, found.state, found.events)


def _update(run: Run, found: Run) -> None:
    """Make `run`, which its listeners know, what was found."""
    run.options, run.generation, run.created_at = found.options, found.generation, found.created_at
    run.state, run.error, run.ended_at = found.state, found.error, found.ended_at
    run.events, run.bytes = found.events, found.bytes
