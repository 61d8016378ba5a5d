"""Two ways to have a hub: in this process, or as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from starlette.routing import BaseRoute, Mount

from ssehub import AsyncPublisher, Hub, Tokens, create_client_app
from ssehub.errors import SSEHubError

CHANNEL = "llm"
OPTIONS: dict[str, Any] = {"channel": CHANNEL, "announce": "answer", "stoppable": True}
"""Of every run: its start and end are announced by events of the type `answer`, and a page may stop it."""
TOKEN_SECONDS = 3_600
RESTART_SECONDS = 1.0

logger = logging.getLogger("llm")


class AnswersHub(Protocol):
    """What the backend needs of a hub."""

    url: str
    """Where pages reach it."""
    routes: Sequence[BaseRoute]
    """What is mounted into the backend."""

    @property
    def kill(self) -> Callable[[], Awaitable[None]] | None:
        """Kills the hub as `kill -9` does, and starts it again after a second; None if it can't be killed."""

    async def token(self, user_id: str) -> str: ...

    async def start(self, run: str, words: AsyncIterator[str], user_id: str) -> None:
        """Begin to write `words` into a run. A run of that name begins anew, even if it is still being written."""

    async def aclose(self) -> None: ...


class HubInProcess:
    """A hub in this process, mounted below /sse. Its runs are in memory."""

    url = "/sse"
    kill = None

    def __init__(self) -> None:
        self._hub = Hub()
        self._tokens = Tokens(secrets.token_urlsafe(32))
        self.routes = [Mount(self.url, create_client_app(self._hub, tokens=self._tokens))]

    async def token(self, user_id: str) -> str:
        return self._tokens.issue(user_id, [CHANNEL], expires_at=time.time() + TOKEN_SECONDS)

    async def start(self, run: str, words: AsyncIterator[str], user_id: str) -> None:
        await self._hub.start_run(run, words, user_id=user_id, restart=True, **OPTIONS)

    async def aclose(self) -> None:
        await self._hub.aclose()


class HubOfItsOwn:
    """`ssehub serve` with its runs in SQLite. The words are sent to it over HTTP."""

    routes = ()

    def __init__(self, port: int, control_port: int, origins: str, database: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "ssehub", "serve", "--broker", f"sqlite:///{database}"),
            *("--bind", f"127.0.0.1:{port}", "--control-bind", f"127.0.0.1:{control_port}"),
            *("--cors-origins", origins),
        ]
        self._environment = {**os.environ, "SSEHUB_SECRET": secrets.token_urlsafe(32)}
        self._publisher = AsyncPublisher(f"http://127.0.0.1:{control_port}")
        self._tasks: set[asyncio.Task[None]] = set()
        self._process = self._run()

    async def token(self, user_id: str) -> str:
        return await self._publisher.token(user_id, CHANNEL, expires_in_seconds=TOKEN_SECONDS)

    async def start(self, run: str, words: AsyncIterator[str], user_id: str) -> None:
        self._spawn(self._write(run, words, user_id))

    async def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._spawn(self._revive())

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._publisher.aclose()
        self._process.terminate()
        self._process.wait()

    def _run(self) -> subprocess.Popen[bytes]:
        # In a session of its own, so that Ctrl-C reaches this process only, which then ends the hub.
        return subprocess.Popen(self._command, env=self._environment, start_new_session=True)

    async def _revive(self) -> None:
        await asyncio.sleep(RESTART_SECONDS)
        self._process = self._run()

    async def _write(self, name: str, words: AsyncIterator[str], user_id: str) -> None:
        try:
            async with self._publisher.run(name, user_id=user_id, restart=True, **OPTIONS) as run:
                async for word in words:
                    await run.append(data=word)
        except SSEHubError as error:  # stopped by a page, or replaced by another attempt
            logger.info("run %s: %s", name, error)

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
