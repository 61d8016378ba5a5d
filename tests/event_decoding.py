"""Events to test with, and what httpx-sse, a decoder that is not ours, reads from a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from httpx_sse._decoders import SSEDecoder, SSELineDecoder

from ssehub.event import Event
from ssehub.position import Position

POSITION = Position(1_700_000_000_000, 3, "abcd1234")


@dataclass
class Shown:
    """What a page receives of one event."""

    event: str
    data: str
    id: str


def event(**fields: Any) -> Event:
    return Event(("chat",), ("*",), **fields)


def decode(stream: bytes) -> list[Shown]:
    lines, decoder = SSELineDecoder(), SSEDecoder()
    shown = (decoder.decode(line) for line in lines.decode(stream.decode()))
    return [Shown(sse.event, sse.data, sse.id) for sse in shown if sse is not None]
