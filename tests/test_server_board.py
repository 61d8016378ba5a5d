"""The board between workers: questions, answers, and workers that give none."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from boards import TOKENS, answerer, workers
from ssehub.brokers import create_broker
from ssehub.hub import Hub
from ssehub.server import board as board_module
from ssehub.server.board import WorkerBoard
from ssehub.web.board import Answerer

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}


async def reply_to(path: Path, *parts: bytes) -> bytes:
    """Send `parts` to the socket at `path`, and return what it answers."""
    reader, writer = await asyncio.open_unix_connection(path)
    for part in parts:
        writer.write(part)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@asynccontextmanager
async def worker_that_answers(path: Path, *parts: bytes) -> AsyncIterator[None]:
    """Stand for a worker that answers every question with `parts`, and closes the connection."""

    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        for part in parts:
            writer.write(part)
        writer.close()

    async with await asyncio.start_unix_server(reply, path):
        yield


async def test_worker_that_does_not_answer_is_named_as_missing(tmp_path: Path) -> None:
    this, other = WorkerBoard(tmp_path, 1, 3), WorkerBoard(tmp_path, 2, 3)

    async with Hub(create_broker("memory://")) as hub, this.serving(answerer(hub)), other.serving(answerer(hub)):
        answers = await this.ask("statistics", {})

    assert list(answers.by_worker) == ["1", "2"]
    assert answers.missing == ["0"]


async def test_worker_that_accepts_a_question_and_never_answers_is_missing_after_a_second(tmp_path: Path) -> None:
    this = WorkerBoard(tmp_path, 0, 2)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "1.sock"))
        silent.listen()
        async with Hub(create_broker("memory://")) as hub, this.serving(answerer(hub)):
            answers = await asyncio.wait_for(this.ask("statistics", {}), 10)

    assert list(answers.by_worker) == ["0"]
    assert answers.missing == ["1"]


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ([], "worker 1 did not answer: it closed the connection without an answer"),
        ([b'{"half": '], "worker 1 did not answer: Expecting value"),
        ([b'{"names": ["chat"]}\n'], "worker 1 answered with an error: its answer is incomplete"),
        ([b'{"error": "no"}\n'], "worker 1 answered with an error: no"),
        ([b"x" * 70_000, b"y" * 70_000], "worker 1 did not answer: its answer has more than 100000 bytes"),
    ],
    ids=["nothing", "half a line", "no end", "error", "too long"],
)
async def test_h3_answer_that_is_not_complete_does_not_count(
    parts: list[bytes],
    line: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board_module, "MAX_ANSWER_BYTES", 100_000)
    async with workers(tmp_path, 1, absent=1) as group, worker_that_answers(tmp_path / "1.sock", *parts):
        answers = await group.board.ask("channels", {"prefix": "", "after": "", "limit": 10})

    assert answers.by_worker == {"0": [{"names": []}]} and answers.missing == ["1"]
    assert line in caplog.text


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (b'{"ask": "weather"}\n', "unknown question 'weather': expected statistics, streams, groups, channels"),
        (b"\n", "the question is not a line of JSON: Expecting value: line 2 column 1 (char 1)"),
        (b"", "the question is not a line of JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\n", "the question is not a line of JSON: 'utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000 + b"\n", "the question is not a line of JSON: nested too deep"),
        (b'["ask"]\n', "the question is not an object with its name as ask"),
        (b'{"ask": 1}\n', "the question is not an object with its name as ask"),
        (b'{"ask": "streams"}\n', "KeyError: 'limit'"),
        (b'{"ask": "groups", "by": "x"}\n', "ValueError: 'x' is not a valid Group"),
    ],
    ids=["unknown", "empty", "nothing", "not UTF-8", "deep", "list", "number", "no arguments", "wrong arguments"],
)
async def test_h3_malformed_question_is_answered_with_an_error(question: bytes, error: str, tmp_path: Path) -> None:
    async with workers(tmp_path, 1):
        line = await reply_to(tmp_path / "0.sock", question)
        afterwards = await reply_to(tmp_path / "0.sock", b'{"ask": "channels", "names": []}\n')

    assert json.loads(line)["error"].startswith(error)
    assert afterwards == b'{"counts": []}\n{"end": true}\n'


async def test_h3_question_over_64_kib_is_answered_and_one_over_the_limit_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "MAX_LINE_BYTES", 2**20)
    async with workers(tmp_path) as group:
        group.join(1, "alex", "long" * 60)
        names = [f"{number:0>250}" for number in range(999)] + ["long" * 60]

        answers = await group.board.ask("channels", {"names": names})
        refused = await reply_to(tmp_path / "0.sock", b'{"ask": "channels", "names": ["', b"x" * 2**20, b'"]}\n')

    assert [items[0]["counts"][-1] for items in answers.by_worker.values()] == [[0, 0], [1, 0]]
    assert json.loads(refused) == {"error": "the question has more than 1048576 bytes"}


class BrokenAnswerer(Answerer):
    """Follows with `items`, then fails."""

    items: tuple[Any, ...] = ()

    def follow(self, worker: str, question: str, arguments: Any) -> AsyncGenerator[Any, None]:
        return self._fail()

    async def _fail(self) -> AsyncGenerator[Any, None]:
        for item in self.items:
            yield item
        raise RuntimeError("a bug")


async def test_failure_while_a_worker_is_followed_is_logged_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Hub() as hub, WorkerBoard(tmp_path, 0, 1).serving(BrokenAnswerer(hub, TOKENS)):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "0.sock")
        writer.write(b'{"follow": "trace"}\n')
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()

    assert json.loads(answer.splitlines()[-1]) == {"error": "RuntimeError: a bug"}
    assert "a question on the board can't be answered" in caplog.text


async def test_worker_that_drains_is_away_until_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "RETRY_SECONDS", 0.01)
    async with workers(tmp_path, 1, absent=1) as group, worker_that_answers(tmp_path / "1.sock", b'{"end": true}\n\n'):
        followed = group.board.follow("trace", {})
        first = await asyncio.wait_for(anext(followed), 10)
        following = asyncio.ensure_future(anext(followed))
        await asyncio.wait([following], timeout=0.2)
        is_silent = not following.done()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await followed.aclose()

    assert first == {"step": "worker-away", "worker": "1", "reason": "it has stopped"}
    assert is_silent


async def test_worker_stops_at_once_while_another_reads_nothing_of_its_answer(tmp_path: Path) -> None:
    async with Hub() as hub:
        full = BrokenAnswerer(hub, TOKENS)
        full.items = ("x" * 2**24,)
        with socket.socket(socket.AF_UNIX) as silent:
            async with asyncio.timeout(10):
                async with WorkerBoard(tmp_path, 0, 1).serving(full):
                    silent.connect(str(tmp_path / "0.sock"))
                    silent.sendall(b'{"follow": "trace"}\n')
                    await asyncio.get_running_loop().run_in_executor(None, silent.recv, 1_000)


async def test_question_with_a_lone_surrogate_is_answered(tmp_path: Path) -> None:
    async with workers(tmp_path, 1) as group:
        response = await group.http.post("/explain/", content=rb'{"token": "\ud800"}', headers=JSON)

    assert (response.status_code, response.json()["would"]) == (200, "refuse")
