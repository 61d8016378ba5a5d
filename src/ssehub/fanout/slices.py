"""Slices: work on many streams, done a few at a time, so that the event loop goes on in between.

A slice is so many streams, or as many as take 5 ms: a stream of a thousand channels takes as long as fifty of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import TypeVar

logger = logging.getLogger("ssehub.hub")

END_SLICE = 50
"""Streams that are ended before the loop goes on: ending one takes about 60 µs."""
SLICE_SECONDS = 0.005
"""How long a slice goes on at most, apart from its last item."""

Item = TypeVar("Item")


def in_slices(
    items: Iterator[Item], act: Callable[[Item], None], size: int | None, then: Callable[[], None] = lambda: None
) -> None:
    """Call `act` for each of `items`: for a slice of `size` now, for another one in each following call of the loop.

    An exception concerns its own item only. `then` is called at the end. If `size` is None, all is done now.
    """
    is_last = True
    try:
        is_last = act_on_slice(items, act, size)
    finally:
        if is_last:
            then()
        else:
            asyncio.get_running_loop().call_soon(in_slices, items, act, size, then)


async def each_in_slices(items: Iterable[Item], act: Callable[[Item], None], size: int) -> None:
    """Do what `in_slices` does; return at the end."""
    rest, is_last = iter(items), False
    while not is_last:
        is_last = act_on_slice(rest, act, size)
        await asyncio.sleep(0)


def act_on_slice(items: Iterator[Item], act: Callable[[Item], None], size: int | None) -> bool:
    """Act on the next of `items`: on a slice of them, or on all if `size` is None. Return True if there are no more."""
    until = perf_counter() + SLICE_SECONDS
    for count, item in enumerate(items, 1):
        try:
            act(item)
        except Exception:
            logger.exception("work on one of many streams failed")
        if size is not None and (count >= size or perf_counter() >= until):
            return False
    return True
