"""The format of runs in Redis: the script, the records of runs, and the messages on channels.

A run is a hash, `{prefix}:run:NAME`, and a stream, `{prefix}:run:NAME/LOG`, whose ids are the ordinals of its events:
`7-0`. Each change is published on the channel `{prefix}:run@DATABASE:NAME`, in the same step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

from ...errors import BrokerUnavailable
from ...runs.entries import RunEvent
from ...runs.model import Outcome, Run, RunOptions, RunState
from .wire import NOT_REDIS

SCRIPT = files(__package__).joinpath("runs.lua").read_bytes()
DIGEST = sha1(SCRIPT, usedforsecurity=False).hexdigest()

LOOK = b"?"
"""What is published about a run whose keys are missing."""
CLAIM = b"!"
"""What is published before the name of a connection that claims a run, if another one held it."""


class RunKeys(NamedTuple):
    """The beginnings of the names of keys and channels, with the hash tag of the deployment."""

    prefix: str
    channel: str
    server: str
    """The id of the process that serves this connection. What a run has lost, it has lost under another."""

    @classmethod
    def of(cls, prefix: str, database: int, server: str = "") -> RunKeys:
        """`database` is the number of the database: channels belong to none."""
        return cls(f"{{{prefix}}}:", f"{{{prefix}}}:run@{database}:", server)


def dump_options(options: RunOptions) -> str:
    """Return `options` as JSON, for `parse_run` and for the script, which reads `users`."""
    values = {
        "channels": options.channels,
        "users": options.users,
        "keep": options.keep,
        "idle": options.idle,
        "announce": options.announce,
        "stoppable": options.stoppable,
    }
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def dump_error(outcome: Outcome | None) -> str:
    """Return the error of `outcome` for the script, which distinguishes no error from an empty one."""
    return "-" if outcome is None or outcome.error is None else f"+{outcome.error}"


def parse_run(name: str, record: Sequence[bytes | None]) -> Run:
    """Return a run from the fields that the script sends of it. Raises BrokerUnavailable for any others."""
    try:
        options, generation, log, state, error, events, size, created, ended = (
            None if field is None else field.decode() for field in record
        )
        values = json.loads(options or "")
        run = Run(
            name,
            RunOptions(
                tuple(values["channels"]),
                tuple(values["users"]),
                values["keep"],
                values["idle"],
                values["announce"],
                values["stoppable"],
            ),
            int(generation or ""),
            log or "",
            int(created or "") / 1000,
            events=int(events or ""),
        )
        run.state = RunState(state or "")
        run.error = error
        run.bytes = int(size or "")
        run.ended_at = None if ended is None else int(ended) / 1000
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BrokerUnavailable(NOT_REDIS) from None
    return run


class Message(NamedTuple):
    """What is published about a run: how it is now, and the entries that were added to it, unless they are large."""

    is_gone: bool
    """True if the run has been deleted, or what was kept of it."""
    generation: int
    log: str
    state: RunState
    events: int
    """How many events it has with these."""
    size: int
    added: int
    """How many events were added."""
    ended_at: float | None
    error: str | None
    entries: Sequence[bytes]
    """The events that were added, or none if they are large."""

    @classmethod
    def parse(cls, message: bytes) -> Message:
        """Raises ValueError if the script has not sent it."""
        head, _, rest = message.partition(b"\n")
        kind, generation, log, state, events, size, count, ended, error = head.decode().split(" ", 8)
        return cls(
            kind == "-",
            int(generation),
            log,
            RunState(state),
            int(events),
            int(size),
            int(count),
            None if ended == "-" else int(ended) / 1000,
            None if error == "-" else json.loads(error),
            rest.split(b"\n") if rest else (),
        )


def load_events(entries: Sequence[bytes]) -> list[RunEvent]:
    return [RunEvent.load(entry.decode()) for entry in entries]  # from bytes, json would guess the encoding
