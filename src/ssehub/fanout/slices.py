"""Slices: work on many streams, done a few at a time, so that the event loop goes on in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

logger = logging.getLogger("ssehub.hub")

END_SLICE = 50
"""Streams that are ended before the loop goes on: ending one takes about 60 µs."""

Item = TypeVar("Item")


def in_slices(
    items: Iterator[Item], act: Callable[[Item], None], size: int, then: Callable[[], None] = lambda: None
) -> None:
    """Call `act` for each of `items`: for `size` of them now, for as many in each following call of the loop.

    An exception concerns its own item only. `then` is called at the end.
    """
    is_last = True
    try:
        is_last = _act_on(islice(items, size), act) < size
    finally:
        if is_last:
            then()
        else:
            asyncio.get_running_loop().call_soon(in_slices, items, act, size, then)


async def each_in_slices(items: Iterable[Item], act: Callable[[Item], None], size: int) -> None:
    """Do what `in_slices` does; return at the end."""
    rest, is_last = iter(items), False
    while not is_last:
        is_last = _act_on(islice(rest, size), act) < size
        await asyncio.sleep(0)


def _act_on(items: Iterator[Item], act: Callable[[Item], None]) -> int:
    count = 0
    for item in items:
        count += 1
        try:
            act(item)
        except Exception:
            logger.exception("work on one of many streams failed")
    return count
