"""How the workers of a group ask each other, so that each of them can answer for all.

Each worker listens on a Unix socket. A connection carries one question, a line of JSON with its name as `ask` and its
arguments. The answer is lines of JSON, of which the last one is `{"end": true}`; without it, the answer is incomplete.
A question that cannot be answered gets the line `{"error": …}` in its place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, SSEHubError
from ..hub import Hub
from ..loglimit import limited_logger
from ..pace import Pace
from ..web.board import Answers, answer

logger = limited_logger("ssehub.server")

TIMEOUT_SECONDS = 1.0
"""A worker that has not answered by then is missing in the answer."""
MAX_QUESTION_BYTES = 4 * 2**20
"""A question that is longer is answered with an error: a thousand names take up to a megabyte."""
MAX_ANSWER_BYTES = 32 * 2**20
"""A worker whose answer is longer is missing in the answer."""
END = {"end": True}


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
                    await self._reply(hub, reader, writer)
            except OSError as exc:
                logger.info("a question on the board got no answer: %s", exc or type(exc).__name__)
            finally:
                writer.close()

        self._path(self._number).unlink(missing_ok=True)  # left by a worker that died
        async with await asyncio.start_unix_server(reply, self._path(self._number), limit=MAX_QUESTION_BYTES):
            yield

    async def _reply(self, hub: Hub, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write the lines that answer the question in the first line of `reader`."""
        try:
            question, arguments = await _question(reader)
            items = [*await answer(hub, str(self._number), question, arguments), END]
        except SSEHubError as exc:
            items = [{"error": str(exc)}]
        except Exception as exc:
            logger.exception("a question on the board can't be answered")
            items = [{"error": f"{type(exc).__name__}: {exc}"}]
        pace = Pace()
        for item in items:
            writer.write(_line(item))
            if pace.is_due:
                await pace.rest()
        await writer.drain()

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        """Return what the workers answer, this one included: it also asks itself by its socket."""
        line = _line({"ask": question, **arguments})
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
                    items = await _items(reader)
                finally:
                    writer.close()
        except (OSError, ValueError) as exc:
            logger.warning("worker %d did not answer: %s", number, exc or type(exc).__name__)
            return None
        last = items.pop()
        if last != END:
            error = last.get("error") if isinstance(last, dict) else None
            logger.warning("worker %d answered with an error: %s", number, error or "its answer is incomplete")
            return None
        return items


async def _question(reader: asyncio.StreamReader) -> tuple[str, dict[str, Any]]:
    """Return the question and its arguments. Raises InvalidRequest."""
    try:
        line = await reader.readline()
    except ValueError:
        raise InvalidRequest(f"the question has more than {MAX_QUESTION_BYTES} bytes") from None
    try:
        arguments = json.loads(line)
    except ValueError as exc:
        raise InvalidRequest(f"the question is not a line of JSON: {exc}") from None
    except RecursionError:
        raise InvalidRequest("the question is not a line of JSON: nested too deep") from None
    if not isinstance(arguments, dict) or not isinstance(question := arguments.pop("ask", None), str):
        raise InvalidRequest("the question is not an object with its name as ask")
    return question, arguments


async def _items(reader: asyncio.StreamReader) -> list[Any]:
    """Return the items of an answer, of which there is at least one. Raises OSError and ValueError."""
    answer = bytearray()
    while part := await reader.read(2**16):
        answer += part
        if len(answer) > MAX_ANSWER_BYTES:
            raise ValueError(f"its answer has more than {MAX_ANSWER_BYTES} bytes")
    items = []
    pace = Pace()
    for line in answer.splitlines():
        items.append(json.loads(line))
        if pace.is_due:
            await pace.rest()
    if not items:
        raise ValueError("it closed the connection without an answer")
    return items


def _line(item: Any) -> bytes:
    return json.dumps(item, ensure_ascii=False).encode() + b"\n"
