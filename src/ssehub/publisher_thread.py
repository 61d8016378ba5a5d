"""An event loop in a thread of its own, for the blocking `Publisher`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import Unavailable

CLOSE_SECONDS = 5.0
CLOSED = "the publisher is closed: make a new one"
Answer = TypeVar("Answer")


class LoopThread:
    """Starts at the first call, and again in a process that was forked since. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._is_closed = False

    def call(self, work: Coroutine[Any, Any, Answer], /) -> Answer:
        """Run `work` in the loop, wait for it, and return its result. An interrupted call cancels it."""
        with self._lock:
            if self._is_closed:
                work.close()
                raise Unavailable(CLOSED)
            future = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise Unavailable(CLOSED) from None
        except BaseException:
            future.cancel()
            raise

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_run, args=(self._loop,), name="ssehub-publisher", daemon=True)
            self._thread.start()
            weakref.finalize(self, _stop, self._loop).atexit = False
        return self._loop

    def close(self) -> None:
        """Cancel what is under way, and end the thread."""
        with self._lock:
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None and self._pid == os.getpid():
            _stop(loop)
            thread.join(CLOSE_SECONDS)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=CLOSE_SECONDS))
        loop.run_until_complete(asyncio.sleep(0))  # connections that were closed are lost now
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
