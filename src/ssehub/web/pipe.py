"""One open pipe: publishes the lines of a request's body as they arrive, and answers each of them in order.

    a line of the body                            the line of the response
    an event, with the fields of `POST /emit/`    {"id": …}, or {"error": …, "status": …} if it can't be published
    an empty one, as a sign of life               an empty one, which also comes by itself if answers take long
    (none)                                        {"end": …, "error": …, "status": …}, the last one of an ended pipe

What has arrived together is published together, in groups, and the answers of a group leave in one write. While a group
waits, for the hub, for the rate of its control key, or for a client that does not read its answers, nothing more is
read: a pipe holds what the server keeps of a body, one group, and one line.

A line that can't be published ends nothing, nor does one that is too long: the rest of it is skipped. Whatever concerns
the lines behind it as well ends the pipe: a key that is no longer valid, a line that does not arrive in time, a hub
that is about to stop, or that can't publish at present. If the pipe went on after that, later events would overtake
those that the client then sends again. A line that has no answer was not published; only if the log failed, it may have
been.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..errors import BodyTooLarge, HubClosed, InvalidRequest, KeyForbidden, LineTimeout, SSEHubError, Unavailable
from ..event import Event
from ..pace import SMALL_BODY_BYTES, Pace
from ..publication import IdempotencyKey, Publication
from ..rights import ControlKey
from .lines import Lines
from .open_body import KeyCheck, OpenBody
from .rates import PublishRates
from .refusals import control_reason
from .strict_json import parse_json, read_json

MAX_GROUP_LINES = 500
"""Reading and publishing so many takes about as long as a slice of work may."""

_publication = partial(tuple.__new__, Publication)  # the constructor of a NamedTuple takes twice as long

LIFE_SECONDS = 5.0
"""While a pipe waits for its rate, it sends a sign of life so often."""
SIGN_OF_LIFE = b"\n"

Send = Callable[[bytes], Awaitable[None]]
ReadEvent = Callable[[Any], tuple[Event, str | None]]
"""Returns the event that a JSON value describes, and its idempotency key. Raises InvalidRequest."""


class PublishAll(Protocol):
    """`Hub.publish_all`."""

    async def __call__(self, publications: list[Publication], /) -> list[str]: ...


class Pipe:
    """The pipe of a client with this `key`. It is one of the producers of its node, so that a drain ends it.

    `refuse` is told of each line that is refused, also of those that have more than `max_line_bytes`. Long lines are
    parsed by one pipe after the other, in its `turn`.
    """

    def __init__(
        self,
        publish_all: PublishAll,
        read_event: ReadEvent,
        key: ControlKey,
        key_check: KeyCheck,
        rates: PublishRates,
        body: OpenBody,
        refuse: Callable[[SSEHubError], None],
        *,
        max_line_bytes: int,
        turn: asyncio.Lock,
    ) -> None:
        self._publish_all = publish_all
        self._read_event = read_event
        self._key = key
        self._key_check = key_check
        self._rates = rates
        self._body = body
        self._refuse = refuse
        self._lines = Lines(max_line_bytes)
        self._line_number = 0
        """The number of the line that was taken last, counted from 1."""
        self._max_line_bytes = max_line_bytes
        self._turn = turn
        self._end: HubClosed | None = None
        self.is_read = False
        """True if nothing more of the body will arrive."""

    def on_drain(self) -> None:
        """The hub is about to stop."""
        self._end = HubClosed("the hub is about to stop: publish the rest to another node, or here after its restart")
        self._body.interrupt()

    async def copy(self, receive: Receive, send: Send) -> None:
        """Publish what arrives until the body ends, and `send` the answers.

        Raises ClientDisconnect if the body breaks off, LineTimeout, ControlKeyError and KeyForbidden if the key is not
        valid any more, and Unavailable. The answers to what was published have been sent then.
        """
        lines = self._lines
        has_more = True
        while has_more:
            self._require_going_on()
            message = await self._body.part(receive, lines.unfinished_bytes)
            if message is None:
                self._require_going_on()
                raise LineTimeout(f"line {self._line_number + 1} did not arrive in time: send each line as a whole")
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self._check_key()
            has_more = message.get("more_body", False)
            self.is_read = not has_more
            arrived = lines.read(message.get("body", b""))
            if not has_more:
                arrived += lines.end()
            if arrived:
                self._body.line_ended()
                await self._take(arrived, send)

    def _require_going_on(self) -> None:
        if self._end is not None:
            raise self._end

    def _check_key(self) -> bool:
        """Return True if the keys were replaced, and the client's is still valid. Otherwise raise why not."""
        if not self._key_check.is_due:
            return False
        self._key = self._key_check.repeat()
        return True

    async def _take(self, lines: list[bytes], send: Send) -> None:
        for first in range(0, len(lines), MAX_GROUP_LINES):
            if first:
                await asyncio.sleep(0)
            group = lines[first : first + MAX_GROUP_LINES]
            await self._publish(group, send)
            self._line_number += len(group)

    async def _publish(self, lines: list[bytes], send: Send) -> None:
        """Publish the events of `lines` when the control key may, and send the answers."""
        group = await self._read(lines)
        while group.events and (seconds := self._rates.try_spend(self._key.name, len(group.events))):
            await self._body.wait(asyncio.sleep(min(seconds, LIFE_SECONDS)), None)
            self._require_going_on()
            await send(SIGN_OF_LIFE)
            if self._check_key():
                group = await self._read(lines)
        try:
            await self._store(group)
        except Unavailable:
            await self._answer(group, send)
            raise
        await self._answer(group, send)

    async def _answer(self, group: _Group, send: Send) -> None:
        """Send the answers of `group` as far as there are any."""
        parts = []
        for answer in group.answered():
            if isinstance(answer, str):
                parts.append(f'{{"id":"{answer}"}}\n' if answer else "\n")  # positions need no escapes in JSON
            else:
                self._refuse(answer)
                parts.append(refusal_line(answer))
        if parts:
            await send("".join(parts).encode())

    # Reading

    async def _read(self, lines: Iterable[bytes]) -> _Group:
        group = _Group()
        key = self._key
        for line in lines:
            try:
                if len(line) > SMALL_BODY_BYTES:
                    value = await self._read_long(line)
                elif not line or line.isspace():
                    group.add_sign_of_life()
                    continue
                else:
                    value = parse_json("the line", line)
                event, name = self._read_event(value)
                if key.grant is not None:
                    key.require_channels(event.channels)
                group.add(event, None if name is None else IdempotencyKey.of_event(name, key.name, event))
            except (InvalidRequest, KeyForbidden) as exc:
                group.add_refusal(exc)
        return group

    async def _read_long(self, line: bytes) -> Any:
        if len(line) > self._max_line_bytes:
            raise BodyTooLarge(f"the line has more than {self._max_line_bytes} bytes")
        async with self._turn:
            return await read_json("the line", line, 0, Pace())

    # Publishing

    async def _store(self, group: _Group) -> None:
        """Publish the events of `group`, all in one step unless one of them is refused."""
        if not group.events:
            return
        try:
            ids = await self._publish_all(group.publications())
        except InvalidRequest:
            await self._store_singly(group)
        else:
            group.answer_all(ids)

    async def _store_singly(self, group: _Group) -> None:
        for place, publication in group.single_publications():
            try:
                (id,) = await self._publish_all([publication])
            except InvalidRequest as exc:
                group.answers[place] = exc
            else:
                group.answers[place] = id


class _Group:
    """Lines that were read together: their events, and an answer for each line, None while it is not known.

    An answer is an id, a refusal, or an empty text for a sign of life.
    """

    __slots__ = ("_has_keys", "_keys", "answers", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.answers: list[str | SSEHubError | None] = []
        self._keys: list[IdempotencyKey | None] = []
        self._has_keys = False

    def add(self, event: Event, key: IdempotencyKey | None) -> None:
        self.events.append(event)
        self.answers.append(None)
        self._keys.append(key)
        if key is not None:
            self._has_keys = True

    def add_sign_of_life(self) -> None:
        self.answers.append("")

    def add_refusal(self, exc: SSEHubError) -> None:
        self.answers.append(exc)

    def publications(self) -> list[Publication]:
        """Return what is to be published, all or nothing."""
        if not self._has_keys:
            return [Publication(self.events)]
        return [_publication(([event], key)) for event, key in zip(self.events, self._keys, strict=True)]

    def single_publications(self) -> list[tuple[int, Publication]]:
        """Return each event as what is to be published by itself, with the place of its answer."""
        places = [place for place, answer in enumerate(self.answers) if answer is None]
        return [
            (place, Publication([event], key))
            for place, event, key in zip(places, self.events, self._keys, strict=True)
        ]

    def answer_all(self, ids: list[str]) -> None:
        """All events have been published, with these `ids`."""
        if len(ids) == len(self.answers):
            self.answers[:] = ids
        else:
            rest = iter(ids)
            self.answers = [next(rest) if answer is None else answer for answer in self.answers]

    def answered(self) -> list[str | SSEHubError]:
        """Return the answers up to the first line that has none yet."""
        found = []
        for answer in self.answers:
            if answer is None:
                break
            found.append(answer)
        return found


def refusal_line(exc: SSEHubError) -> str:
    """Return the answer to a line that is refused."""
    return _line(error=_message(exc), status=exc.status)


def last_line(exc: SSEHubError) -> str:
    """Return the line that ends the response, because the pipe can't go on."""
    return _line(end=control_reason(exc).value, error=_message(exc), status=exc.status)


def _line(**fields: object) -> str:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")) + "\n"


def _message(exc: SSEHubError) -> str:
    return str(exc).encode(errors="backslashreplace").decode()
