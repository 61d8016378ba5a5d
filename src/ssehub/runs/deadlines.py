"""Deadlines that are mostly postponed before they are reached; and tombstones, which all last the same time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Generic, Protocol, TypeVar

SPARE_ENTRIES = 1_000
"""How many entries that no longer count the heap may have, besides as many as count."""
TICK_SECONDS = 0.25
"""The least time between two looks at the deadlines, unless there is more to do than one of them does."""
REST_SECONDS = 30.0
"""The longest time between two looks. Tombstones are removed by looks, too, and have no hurry."""
LATE_SECONDS = 1.0
"""By how much a look at the deadlines may be late without being left out."""
NEVER = float("inf")


class Timed(Protocol):
    """Something that has a deadline. `due` is the time of its entry in the heap, NEVER without one."""

    due: float


Item = TypeVar("Item", bound=Timed)


class Deadlines(Generic[Item]):
    """A heap with an entry for each item that is not later than its deadline.

    To put a deadline off, nothing is done: when the entry's time comes, the owner adds the item again.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []
        self._order = count()
        self._items = 0
        """How many entries count."""

    def __len__(self) -> int:
        """Return the number of entries. Some of them may not count any more."""
        return len(self._heap)

    @property
    def first(self) -> float:
        """The time of the first entry, NEVER if there is none."""
        return self._heap[0][0] if self._heap else NEVER

    def watch(self, item: Item, deadline: float) -> None:
        """Let `item` have an entry that is not later than `deadline`."""
        if deadline >= item.due:
            return
        self._items += item.due == NEVER
        item.due = deadline
        if len(self._heap) > 2 * self._items + SPARE_ENTRIES:
            self._heap = [entry for entry in self._heap if entry[2].due == entry[0]]
            heapify(self._heap)
        heappush(self._heap, (deadline, next(self._order), item))

    def forget(self, item: Item) -> None:
        """Let the entry of `item` not count any more."""
        self._items -= item.due != NEVER
        item.due = NEVER

    def pop(self, now: float, most: int) -> Iterator[Item | None]:
        """Remove up to `most` entries whose time has come, and yield their items, None for each that did not count."""
        heap = self._heap
        while most and heap and heap[0][0] <= now:
            due, _, item = heappop(heap)
            most -= 1
            if item.due == due:
                self.forget(item)
                yield item
            else:
                yield None


class Lateness:
    """Decides whether a look at the deadlines is left out, since it is late.

    A look that is late by more than LATE_SECONDS means that the process was suspended, or waited for its disk. What
    producers sent in that time has not been read yet, and shows that they are alive. Two in a row are never left out.
    """

    def __init__(self) -> None:
        self._has_skipped = False

    def skips(self, seconds: float) -> bool:
        """Return True if a look that is late by `seconds` is left out. Call this for each look."""
        self._has_skipped = seconds > LATE_SECONDS and not self._has_skipped
        return self._has_skipped


class Looks:
    """Decides when to look at the deadlines. Times are seconds of the clock that the caller waits by.

    It sleeps until a deadline is reached. The look then does nothing, and leaves it to the one after it: the process
    may have been suspended in the meantime, which so late nobody notices.
    """

    def __init__(self, now: float) -> None:
        self.next = now + TICK_SECONDS
        """When the next look is due."""
        self._last = now
        self._has_slept = False
        self._lateness = Lateness()

    def acts(self, now: float) -> bool:
        """Look, as it is time for it. Return True if what is due is to be done now."""
        is_left_out = self._lateness.skips(now - self.next) or self._has_slept
        self.next, self._last, self._has_slept = now + TICK_SECONDS, now, False
        return not is_left_out

    def plan(self, now: float, seconds: float) -> None:
        """The first deadline is reached in so many seconds."""
        if seconds > TICK_SECONDS:
            rest = self._last + REST_SECONDS - now
            self.next, self._has_slept = now + min(seconds, rest), seconds < rest + LATE_SECONDS
        elif self.next > now + TICK_SECONDS:
            self.next, self._has_slept = now + TICK_SECONDS, False


class Tombstones:
    """The last generation of names whose runs are gone, for `seconds`, and at most `most` of them."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most
        self._generations: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Each with the time at which the run was gone, the oldest first."""

    def add(self, name: str, generation: int, gone_at: float) -> None:
        """Add a tombstone. They are added in the order of `gone_at`."""
        self._generations[name] = generation, gone_at
        self._generations.move_to_end(name)
        if len(self._generations) > self._most:
            self._generations.popitem(last=False)

    def generation(self, name: str) -> int:
        """Return the last generation of `name`; 0 if it is not known."""
        found = self._generations.get(name)
        return 0 if found is None else found[0]

    def remove(self, name: str) -> None:
        """Remove the tombstone of `name`, if there is one."""
        self._generations.pop(name, None)

    def expire(self, now: float, most: int) -> None:
        """Remove up to `most` tombstones that are old enough."""
        end = now - self._seconds
        while most and self._generations and next(iter(self._generations.values()))[1] <= end:
            self._generations.popitem(last=False)
            most -= 1
