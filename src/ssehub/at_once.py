"""Runs a coroutine at once as far as it goes, in place of a task that would begin in the next turn of the event loop.

Python 3.12 has this in its tasks (`eager_start`). Most requests never wait for anything, so that they need no task.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def run_at_once(work: Coroutine[Any, Any, T], done: Callable[[T], None]) -> asyncio.Task[None] | None:
    """Call `done` with the result of `work`: now, if it waits for nothing, otherwise later.

    Returns the task in which it goes on, None if it is done; keep the task until then. Until `work` waits for the first
    time there is no current task, so that it must not use `asyncio.timeout` before. It must raise nothing, nor `done`.
    """
    try:
        waiting = work.send(None)
    except StopIteration as end:
        done(end.value)
        return None
    return asyncio.get_running_loop().create_task(_go_on(work, waiting, done))


async def _go_on(work: Coroutine[Any, Any, T], waiting: Any, done: Callable[[T], None]) -> None:
    done(await _rest(work, waiting))


@types.coroutine
def _rest(work: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, None, T]:
    """Run `work` on, which waits for `waiting`, to its end."""
    while True:
        try:
            try:
                yield waiting
            except BaseException as exc:
                waiting = work.throw(exc)
            else:
                waiting = work.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
