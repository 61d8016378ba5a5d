"""How the workers of a group ask each other, so that each of them can answer for all.

Each worker listens on a Unix socket. A connection carries one question, a line of JSON with its name as `ask` and its
arguments. The answer is lines of JSON, and ends when the connection is closed. A question that cannot be answered gets
the line `{"error": …}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import SSEHubError
from ..hub import Hub
from ..loglimit import limited_logger
from ..web.board import Answers, answer

logger = limited_logger("ssehub.server")

TIMEOUT_SECONDS = 1.0
"""A worker that has not answered by then is missing in the answer."""


class WorkerBoard:
    """The board of the workers 0 to `workers` - 1, each on a Unix socket in `folder`. This worker is `number`."""

    def __init__(self, folder: Path, number: int, workers: int) -> None:
        self._folder = folder
        self._number = number
        self._workers = workers

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.sock"

    @asynccontextmanager
    async def serving(self, hub: Hub) -> AsyncIterator[None]:
        """Inside the context, answer the questions that reach this worker's socket from `hub`."""

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    writer.write(await _reply(hub, await reader.readline()))
                    await writer.drain()
            except (OSError, ValueError) as exc:
                logger.info("a question on the board got no answer: %s", exc or type(exc).__name__)
            finally:
                writer.close()

        self._path(self._number).unlink(missing_ok=True)  # left by a worker that died
        async with await asyncio.start_unix_server(reply, self._path(self._number)):
            yield

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        """Return what the workers answer, this one included: it also asks itself by its socket."""
        line = json.dumps({"ask": question, **arguments}).encode() + b"\n"
        items = await asyncio.gather(*[self._read(number, line) for number in range(self._workers)])
        return Answers(
            {str(number): found for number, found in enumerate(items) if found is not None},
            [str(number) for number, found in enumerate(items) if found is None],
        )

    async def _read(self, number: int, question: bytes) -> list[Any] | None:
        """Return the items that a worker answers, None if it does not answer in time."""
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._path(number))
                try:
                    writer.write(question)
                    items = [json.loads(line) for line in (await reader.read()).splitlines()]
                finally:
                    writer.close()
        except (OSError, ValueError) as exc:
            logger.warning("worker %d did not answer: %s", number, exc or type(exc).__name__)
            return None
        if not items or "error" in items[-1]:
            logger.warning("worker %d answered with an error: %s", number, items[-1:])
            return None
        return items


async def _reply(hub: Hub, line: bytes) -> bytes:
    """Return the lines that answer the question in `line`. Raises ValueError if it is none."""
    question = json.loads(line)
    try:
        items = await answer(hub, question.pop("ask"), question)
    except SSEHubError as exc:
        items = [{"error": str(exc)}]
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)
