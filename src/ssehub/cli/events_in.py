"""`ssehub emit -`: events from standard input, one on each line, sent by a pipe as they come.

The lines are answered in their order, so that the answer to a line that can't be sent waits for those before it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from uuid import uuid4

import click

from ..errors import ControlKeyError, InvalidRequest, SSEHubError
from ..publisher_calls import json_body
from ..publisher_links import Links
from ..publisher_pipe import PipeWriter
from ..publisher_pipe_request import Result
from .hub import ControlApp, explained, retries_shown
from .table import printable_json

MAX_LINE_BYTES = 16 * 2**20
_READ_BYTES = 64 * 2**10


def publish_lines(hub: ControlApp, defaults: Mapping[str, object], key: str | None) -> int:
    """Publish the lines of standard input, and answer each; return the exit code.

    With `key`, the idempotency key of each event is made of that and its line: then the same input can be published
    again. Raises click.ClickException if the hub can't be used any more.
    """
    links = hub.links()
    with retries_shown():
        return asyncio.run(_publish(links, sys.stdin.fileno(), defaults, key or uuid4().hex))


async def _publish(links: Links, descriptor: int, defaults: Mapping[str, object], key: str) -> int:
    writer, answers = PipeWriter(links), _Answers()
    await writer.open()
    try:
        number = 0
        async for text in _lines(descriptor):
            number += 1
            if text.strip():
                answer = answers.expect(number)
                try:
                    line = _line(text, defaults, f"{key}-{number}")
                except InvalidRequest as exc:
                    answer(exc)
                else:
                    await writer.put(line, answer)
        await writer.finish()
    except SSEHubError as exc:
        raise _stopped(exc, answers.missing) from exc
    finally:
        await writer.close()
    return int(answers.has_error)


def _stopped(exc: SSEHubError, missing: list[int]) -> click.ClickException:
    if isinstance(exc, ControlKeyError) or not missing:
        return click.ClickException(explained(exc))
    first, last = missing[0], missing[-1]
    which = f"line {first}" if first == last else f"lines {first} to {last}"
    return click.ClickException(f"{which} may or may not be stored, and nothing after that was sent: {exc}")


class _Answers:
    """Prints a line of JSON for each line of the input, in order, once those before it have theirs."""

    def __init__(self) -> None:
        self.has_error = False
        self._due: deque[_Due] = deque()

    @property
    def missing(self) -> list[int]:
        """The numbers of the lines whose answers are not known."""
        return [due.number for due in self._due if due.answer is None]

    def expect(self, number: int) -> Callable[[Result | None], None]:
        """Return what is to be called with the result of line `number`, None if there will be none."""
        due = _Due(number)
        self._due.append(due)

        def tell(result: Result | None) -> None:
            if result is not None:
                due.answer = {"error": str(result)} if isinstance(result, SSEHubError) else {"id": result}
                self._print()

        return tell

    def _print(self) -> None:
        while self._due and (answer := self._due[0].answer) is not None:
            self.has_error = self.has_error or "error" in answer
            click.echo(printable_json({"line": self._due.popleft().number, **answer}))


class _Due:
    """A line that has no printed answer."""

    __slots__ = ("answer", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.answer: Mapping[str, str] | None = None


async def _lines(descriptor: int) -> AsyncIterator[bytes]:
    """Yield the lines as they come, at last what follows the last line end."""
    parts: list[bytes] = []
    size = 0
    while chunk := await _read(descriptor):
        parts.append(chunk)
        size += len(chunk)
        if b"\n" in chunk:
            *lines, rest = b"".join(parts).split(b"\n")
            parts, size = [rest], len(rest)
            for line in lines:
                yield line
        elif size > MAX_LINE_BYTES:
            raise click.ClickException(f"a line has more than {MAX_LINE_BYTES} bytes: it and the rest were not sent")
    yield b"".join(parts)


async def _read(descriptor: int) -> bytes:
    """Read what has arrived. While nothing has, other tasks go on, and Ctrl-C ends the command."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except OSError:  # a file, which is never waited for
        await asyncio.sleep(0)
    else:
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)
    return os.read(descriptor, _READ_BYTES)


def _line(text: bytes, defaults: Mapping[str, object], key: str) -> bytes:
    """Return the event of a line of the input as it is sent. Raises InvalidRequest."""
    event = _event(text)
    return json_body({"idempotencyKey": key, **defaults, **event}) + b"\n"


def _event(text: bytes) -> Mapping[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise InvalidRequest(f"not JSON ({reason}): write one event as a JSON object on each line") from exc
    if not isinstance(event, dict):
        raise InvalidRequest(f"not a JSON object: {text[:40].decode(errors='replace')}")
    return event
