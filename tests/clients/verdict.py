"""Compares what a client has handed to its application with what was published."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .program import Message

FINE = "all once"
NUMBER = re.compile(r'"n": (\d+)(?=\D)')
"""The number in an event's data. If nothing follows it, it may have been cut off."""


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that the client should receive, with its id."""

    id: str
    type: str
    data: str

    @property
    def number(self) -> str | None:
        found = NUMBER.search(self.data)
        return found[1] if found else None


@dataclass(frozen=True, slots=True)
class Difference:
    """How many events were received in the wrong way."""

    lost: int
    twice: int
    altered: int
    incomplete: int
    """Events that were handed over when the connection broke inside them, besides the complete ones."""
    wrong_ids: int
    extra: int
    """Messages that are no events of a publisher, and that the application cannot recognise as the hub's own."""
    out_of_order: bool
    examples: tuple[str, ...]

    def __str__(self) -> str:
        parts = [
            f"lost {self.lost}" if self.lost else "",
            f"twice {self.twice}" if self.twice else "",
            f"altered {self.altered}" if self.altered else "",
            f"incomplete {self.incomplete}" if self.incomplete else "",
            f"wrong id {self.wrong_ids}" if self.wrong_ids else "",
            f"{self.extra} extra" if self.extra else "",
            "out of order" if self.out_of_order else "",
        ]
        return ", ".join(part for part in parts if part) or FINE


def compare(sent: Sequence[Sent], messages: Sequence[Message]) -> Difference:
    """Match each message with the event that it is, and count.

    An event is recognised by the number in its data, else by its id, else (empty data) by its type and place.
    """
    matches: list[list[Message]] = [[] for _ in sent]
    order: list[int] = []
    extra: list[Message] = []
    incomplete: list[Message] = []
    for message in messages:
        index = _find(message, sent, matches)
        if (message.type or "").startswith("stream-"):
            continue
        if index is None:
            (incomplete if _is_part_of_one(message, sent) else extra).append(message)
            continue
        if not matches[index]:
            order.append(index)
        matches[index].append(message)
    altered, wrong_ids, examples = 0, 0, []
    for event, found in zip(sent, matches, strict=True):
        if any(message.data == event.data for message in found):
            incomplete += [message for message in found if _is_part(message, event)]
            found[:] = [message for message in found if not _is_part(message, event)]
        if not found:
            examples.append(f"lost {event}")
        elif any(message.data != event.data or message.type not in (None, event.type) for message in found):
            altered += 1
            examples.append(f"received {found}, sent {event}")
        elif any(message.id not in (None, event.id) for message in found):
            wrong_ids += 1
            examples.append(f"received {found}, sent {event}")
    examples += [f"extra {message}" for message in extra] + [f"incomplete {message}" for message in incomplete]
    return Difference(
        lost=sum(not found for found in matches),
        twice=sum(len(found) > 1 for found in matches),
        altered=altered,
        incomplete=len(incomplete),
        wrong_ids=wrong_ids,
        extra=len(extra),
        out_of_order=order != sorted(order),
        examples=tuple(example[:300] for example in examples),
    )


def _is_part(message: Message, event: Sent) -> bool:
    """Return True if the message has some of the event's data, from its beginning."""
    return message.data is not None and message.data != event.data and event.data.startswith(message.data)


def _is_part_of_one(message: Message, sent: Sequence[Sent]) -> bool:
    return bool(message.data) and any(_is_part(message, event) for event in sent)


def _find(message: Message, sent: Sequence[Sent], matches: Sequence[Sequence[Message]]) -> int | None:
    number = NUMBER.search(message.data or "")
    for index, event in enumerate(sent):
        if number and event.number == number[1]:
            return index
        if not number and event.number is None and message.id is not None and message.id == event.id:
            return index
    if number or message.data:
        return None
    for index, event in enumerate(sent):
        if not event.data and not matches[index] and message.type in (None, event.type):
            return index
    return None
