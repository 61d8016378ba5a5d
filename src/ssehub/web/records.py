"""The records of a trace as JSON, as the board and `GET /trace/` send them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ..fanout.tracing import Record
from ..fanout.wanted import address_of
from ..hub import Hub
from ..timestamps import rfc3339
from .listing import wanted_of


async def trace(hub: Hub, worker: str, arguments: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """Yield what happens to the streams of `hub`, which is that of `worker`, that the arguments ask about.

    That is nothing while the hub drains: the traces end with the drain, which may be over already.
    """
    wanted = wanted_of(arguments)
    if hub.is_draining:
        return
    with hub.tracer.watching(wanted) as found:
        async for record in found.records():
            yield _to_json(record, worker)


def _to_json(record: Record, worker: str) -> dict[str, Any]:
    """Return the record without what does not apply to its step."""
    fields = {
        "step": record.step,
        "at": rfc3339(record.at),
        "worker": worker,
        "number": record.number,
        "userId": record.user_id,
        "channels": record.channels or None,
        "patterns": record.patterns or None,
        "run": record.run,
        "address": address_of(record.origin),
        "client": None if record.origin is None else record.origin.client,
        "reason": record.reason,
        "streams": record.streams,
        "seconds": None if record.seconds is None else round(record.seconds, 3),
        "events": record.events,
        "bytes": record.bytes,
        "records": record.records,
    }
    return {name: value for name, value in fields.items() if value is not None}
