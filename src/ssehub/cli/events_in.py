"""`ssehub emit -`: events from standard input, one on each line, published in batches as the lines come.

A batch is what has arrived while the one before was published, and is published whole or not at all. If the hub refuses
it, its events are sent one by one, so that only those are refused that are wrong.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..errors import ControlKeyError, Forbidden, InvalidRequest, Unavailable
from .hub import ControlApp, explained
from .table import printable_json

MAX_BATCH_EVENTS = 500
MAX_BATCH_BYTES = 512 * 2**10
MAX_LINE_BYTES = 16 * 2**20
_READ_BYTES = 64 * 2**10


class Line(NamedTuple):
    """A line of the input. `event` is None if `problem` says what is wrong with it."""

    number: int
    event: Mapping[str, Any] | None
    problem: str = ""


def publish_lines(hub: ControlApp, defaults: Mapping[str, object], key: str | None) -> int:
    """Publish the lines of standard input, and answer each; return the exit code.

    With `key`, each event is published by itself, with a key of its own made of that and its line: then the same input
    can be published again, however its lines arrive. Raises click.ClickException if the hub can't be used any more.
    """
    has_failed = False
    for batch in _batches(sys.stdin.fileno(), defaults, 1 if key is not None else MAX_BATCH_EVENTS):
        for line, answer in _publish(hub, batch, key):
            has_failed = has_failed or "error" in answer
            click.echo(printable_json({"line": line.number, **answer}))
    return int(has_failed)


def _publish(hub: ControlApp, batch: Sequence[Line], key: str | None) -> Iterator[tuple[Line, Mapping[str, str]]]:
    """Yield each line with its answer, in order."""
    events = [line for line in batch if line.event is not None]
    ids: Iterator[str] | None = None
    if len(events) > 1:
        ids = _publish_whole(hub, events)
    for line in batch:
        if line.event is None:
            yield line, {"error": line.problem}
        elif ids is not None:
            yield line, {"id": next(ids)}
        else:
            yield line, _publish_one(hub, line, line.event, key)


def _publish_whole(hub: ControlApp, lines: Sequence[Line]) -> Iterator[str] | None:
    """Publish a batch and return the ids; None if the hub refuses it, so that nothing is published."""
    try:
        ids: list[str] = hub.publish([line.event for line in lines])["ids"]
    except ControlKeyError as exc:
        raise click.ClickException(explained(exc)) from exc
    except (InvalidRequest, Forbidden):
        return None
    except Unavailable as exc:
        raise _stopped(exc, lines[0].number, lines[-1].number) from exc
    return iter(ids)


def _publish_one(hub: ControlApp, line: Line, event: Mapping[str, Any], key: str | None) -> Mapping[str, str]:
    try:
        return {"id": hub.publish(event, f"{key}-{line.number}" if key is not None else None)["id"]}
    except ControlKeyError as exc:
        raise click.ClickException(explained(exc)) from exc
    except (InvalidRequest, Forbidden) as exc:
        return {"error": str(exc)}
    except Unavailable as exc:
        raise _stopped(exc, line.number, line.number) from exc


def _stopped(exc: Unavailable, first: int, last: int) -> click.ClickException:
    which = f"line {first}" if first == last else f"lines {first} to {last}"
    return click.ClickException(f"{which} may or may not be stored, and nothing after that was sent: {exc}")


def _batches(descriptor: int, defaults: Mapping[str, object], most: int) -> Iterator[list[Line]]:
    """Yield what has arrived, as soon as it has."""
    number = 0
    for lines in _arrived(descriptor):
        batch: list[Line] = []
        size = 0
        for text in lines:
            number += 1
            if not text.strip():
                continue
            batch.append(_parsed(number, text, defaults))
            size += len(text)
            if len(batch) >= most or size >= MAX_BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def _arrived(descriptor: int) -> Iterator[list[bytes]]:
    """Yield the complete lines of each read, at last what follows the last line end."""
    parts: list[bytes] = []
    size = 0
    while chunk := os.read(descriptor, _READ_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if b"\n" in chunk:
            *lines, rest = b"".join(parts).split(b"\n")
            parts, size = [rest], len(rest)
            yield lines
        elif size > MAX_LINE_BYTES:
            raise click.ClickException(f"a line has more than {MAX_LINE_BYTES} bytes: it and the rest were not sent")
    yield [b"".join(parts)]


def _parsed(number: int, text: bytes, defaults: Mapping[str, object]) -> Line:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        return Line(number, None, f"not JSON ({reason}): write one event as a JSON object on each line")
    if not isinstance(event, dict):
        return Line(number, None, f"not a JSON object: {text[:40].decode(errors='replace')}")
    return Line(number, {**defaults, **event})
