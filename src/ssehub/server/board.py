"""How the workers of a group ask each other, so that each of them can answer for all.

Each worker listens on a Unix socket. A connection carries one question, a line of JSON with its name as `ask` and its
arguments. The answer is lines of JSON, of which the last one is `{"end": true}`; without it, the answer is incomplete.
A question that cannot be answered gets the line `{"error": …}` in its place.

A question whose answer has no end has its name as `follow`. Its answer begins with an empty line, and then has one at
least every second, so that a worker that hangs is noticed. It lasts until the one who asks closes the connection, or
until this worker drains.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, SSEHubError
from ..loglimit import limited_logger
from ..pace import Pace
from ..web.board import EXPLAIN, WORKER_AWAY, WORKER_BACK, Answerer, Answers

logger = limited_logger("ssehub.server")

TIMEOUT_SECONDS = 1.0
"""A worker that has not answered by then is missing in the answer."""
LONGER_SECONDS: Mapping[str, float] = {EXPLAIN: 5.0}
"""The same for questions that may take longer: keys of an identity provider are fetched for at most 2 s."""
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 5.0
"""A worker that is followed and has sent nothing for so long is away."""
RETRY_SECONDS = 1.0
"""How soon a worker that is away is asked again."""
MAX_QUEUED = 100
"""Items of workers that are followed, until they are asked for. Then nothing more is read from the workers."""
MAX_LINE_BYTES = 4 * 2**20
"""A longer question is answered with an error, and so is a line of a worker that is followed: a thousand names take up
to a megabyte.
"""
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
    async def serving(self, answerer: Answerer) -> AsyncIterator[None]:
        """Inside the context, let `answerer` answer the questions that reach this worker's socket."""
        replies: set[asyncio.Task[None]] = set()

        async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            replies.add(task)
            try:
                await self._reply(answerer, reader, writer)
            except OSError as exc:
                logger.info("a question on the board got no answer: %s", exc or type(exc).__name__)
            except asyncio.CancelledError:
                writer.transport.abort()  # since Python 3.12 the server waits for those who don't read, too
                raise
            finally:
                writer.close()
                replies.discard(task)

        self._path(self._number).unlink(missing_ok=True)  # left by a worker that died
        async with await asyncio.start_unix_server(reply, self._path(self._number), limit=MAX_LINE_BYTES):
            try:
                yield
            finally:
                for task in replies:
                    task.cancel()

    async def _reply(self, answerer: Answerer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Write the lines that answer the question in the first line of `reader`."""
        worker = str(self._number)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                asked, arguments = await _question(reader)
            if "follow" in asked:
                followed = answerer.follow(worker, asked["follow"], arguments)
                await _send_while_asked(followed, reader, writer)
                return
            async with asyncio.timeout(_seconds_for(asked["ask"])):
                items = [*await answerer.answer(worker, asked["ask"], arguments), END]
        except SSEHubError as exc:
            items = [{"error": str(exc)}]
        except OSError:
            raise
        except Exception as exc:
            logger.exception("a question on the board can't be answered")
            items = [{"error": f"{type(exc).__name__}: {exc}"}]
        pace = Pace()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            for item in items:
                writer.write(_line(item))
                if pace.is_due:
                    await pace.rest()
            await writer.drain()

    async def ask(self, question: str, arguments: Mapping[str, Any]) -> Answers:
        """Return what the workers answer, this one included: it also asks itself by its socket."""
        line = _line({"ask": question, **arguments})
        seconds = _seconds_for(question)
        items = await asyncio.gather(*[self._read(number, line, seconds) for number in range(self._workers)])
        return Answers(
            {str(number): found for number, found in enumerate(items) if found is not None},
            [str(number) for number, found in enumerate(items) if found is None],
        )

    async def follow(self, question: str, arguments: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """Yield what the workers answer over time, this one included, until it drains: see `web.board.Board`."""
        line = _line({"follow": question, **arguments})
        found: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(MAX_QUEUED)
        tasks = [asyncio.create_task(self._follow_one(number, line, found)) for number in range(self._workers)]
        try:
            while (item := await found.get()) != (self._number, END):
                if item[1] != END:
                    yield item[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow_one(self, number: int, question: bytes, found: asyncio.Queue[tuple[int, Any]]) -> None:
        """Put the items of a worker into `found`, and whether it is away. Ask again when it is, without end."""
        is_away = False
        while True:
            reason = "it has stopped"
            try:
                async with aclosing(self._lines(number, question)) as lines:
                    async for item in lines:
                        if item == END:
                            await found.put((number, END))
                            break
                        if is_away:
                            is_away = False
                            await found.put((number, {"step": WORKER_BACK, "worker": str(number)}))
                        if item is not None:
                            await found.put((number, item))
            except (OSError, ValueError, SSEHubError) as exc:
                reason = str(exc) or type(exc).__name__
            if not is_away:
                is_away = True
                await found.put((number, {"step": WORKER_AWAY, "worker": str(number), "reason": reason}))
            await asyncio.sleep(RETRY_SECONDS)

    async def _lines(self, number: int, question: bytes) -> AsyncGenerator[Any, None]:
        """Yield the items of a worker that is followed, None for an empty line. Raises OSError and ValueError."""
        reader, writer = await asyncio.open_unix_connection(self._path(number), limit=MAX_LINE_BYTES)
        try:
            writer.write(question)
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    line = await reader.readline()
                if not line:
                    return
                item = json.loads(line) if line.strip() else None
                if isinstance(item, dict) and "error" in item:
                    raise ValueError(item["error"])
                yield item
        finally:
            writer.close()

    async def _read(self, number: int, question: bytes, seconds: float) -> list[Any] | None:
        """Return the items that a worker answers, None if it does not answer in so many seconds."""
        try:
            async with asyncio.timeout(seconds):
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


def _seconds_for(question: str) -> float:
    return LONGER_SECONDS.get(question, TIMEOUT_SECONDS)


async def _send_while_asked(
    items: AsyncGenerator[Any, None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Write `items` as lines until there are no more, or the one who asks for them has left."""

    async def send() -> None:
        async for item in items:
            writer.write(_line(item))
            await writer.drain()
        writer.write(_line(END))
        await writer.drain()

    async def beat() -> None:
        while True:
            writer.write(b"\n")
            await writer.drain()
            await asyncio.sleep(BEAT_SECONDS)

    async with aclosing(items):
        tasks = [asyncio.create_task(work) for work in (send(), beat(), reader.read())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def _question(reader: asyncio.StreamReader) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the question, by `ask` or `follow`, and its arguments. Raises InvalidRequest."""
    try:
        line = await reader.readline()
    except ValueError:
        raise InvalidRequest(f"the question has more than {MAX_LINE_BYTES} bytes") from None
    try:
        arguments = json.loads(line)
    except ValueError as exc:
        raise InvalidRequest(f"the question is not a line of JSON: {exc}") from None
    except RecursionError:
        raise InvalidRequest("the question is not a line of JSON: nested too deep") from None
    if isinstance(arguments, dict):
        asked = {name: arguments.pop(name) for name in ("ask", "follow") if name in arguments}
        if len(asked) == 1 and all(isinstance(question, str) for question in asked.values()):
            return asked, arguments
    raise InvalidRequest("the question is not an object with its name as ask or follow")


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
    # A field of a request may have a lone surrogate: `json.loads` reads those, too.
    return json.dumps(item, ensure_ascii=False).encode(errors="surrogatepass") + b"\n"
