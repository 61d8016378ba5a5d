"""The fields of an event, as a publisher names them and as they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Required, TypedDict


class EventFields(TypedDict, total=False):
    """One event, with the field names of `Hub.publish`. `payload` is raw stream text that replaces the other fields."""

    channel: Required[str | Sequence[str]]
    user_id: Required[str | Sequence[str]]
    data: object
    type: str | None
    id: str | None
    retry: int | None
    payload: str | None
    store: bool
    ttl: float | None


_WIRE_NAMES = {"user_id": "userId", "type": "event"}


def wire_fields(event: EventFields) -> dict[str, object]:
    """Return the fields of `event` with the names of `POST /emit/`."""
    wire = {_WIRE_NAMES.get(name, name): value for name, value in event.items() if value is not None}
    if "data" in event and event["data"] is None:
        wire["data"] = "null"  # as `Hub.publish` writes it
    return wire
