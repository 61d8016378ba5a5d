"""The record of a run in the file: JSON of everything about it except for its events, their number and size."""

from __future__ import annotations

import json
from typing import Any

from ...errors import BrokerUnavailable, InvalidEvent
from ...publication import IdempotencyKey
from ...runs.book import Claim, Record
from ...runs.model import Run, RunOptions, RunState
from ...runs.store import Ticket
from .runfile import Stored


def dump_record(record: Record) -> str:
    """Return the record as JSON, for `load_record`. What does not have a value is left out."""
    run, options = record.run, record.run.options
    fields = {
        "generation": run.generation,
        "log": run.log,
        "state": run.state,
        "error": run.error,
        "channels": options.channels,
        "users": options.users,
        "keep": options.keep,
        "idle": options.idle,
        "announce": options.announce,
        "stoppable": options.stoppable or None,
        "createdAt": run.created_at,
        "endedAt": run.ended_at,
        "key": record.key,
        "creator": record.creator,
        "finisher": record.finisher,
        "ticket": None if record.claim is None else record.claim.ticket,
    }
    present = {name: value for name, value in fields.items() if value is not None}
    # In ASCII: the error is any text, and a lone surrogate in it could not be stored otherwise.
    return json.dumps(present, separators=(",", ":"))


def load_record(stored: Stored) -> Record:
    """Return the record of a run in the file. Nobody holds its claim. Raises BrokerUnavailable if it is damaged."""
    try:
        return _load(stored, json.loads(stored.record))
    except (InvalidEvent, KeyError, TypeError, ValueError) as exc:
        raise BrokerUnavailable(f"the record of run {stored.name!r} is damaged ({exc!r})") from exc


def _load(stored: Stored, fields: dict[str, Any]) -> Record:
    options = RunOptions(
        tuple(fields["channels"]),
        tuple(fields["users"]),
        keep=fields["keep"],
        idle=fields["idle"],
        announce=fields.get("announce"),
        stoppable=fields.get("stoppable", False),
    )
    run = Run(stored.name, options, fields["generation"], fields["log"], fields["createdAt"], events=stored.events)
    run.bytes = stored.bytes
    run.state = RunState(fields["state"])
    run.error = fields.get("error")
    run.ended_at = fields.get("endedAt")
    key, ticket = fields.get("key"), fields.get("ticket")
    record = Record(run, None if key is None else IdempotencyKey(*key), fields.get("creator"))
    record.finisher = fields.get("finisher")
    record.claim = None if ticket is None else Claim(Ticket(*ticket), False)
    return record
