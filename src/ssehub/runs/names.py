"""The names of runs, sorted, for listings of all runs and of the runs of one user."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from heapq import merge

from ..fields import EVERYONE


class NameIndex:
    """Names, each with users that it is for."""

    def __init__(self) -> None:
        self._all = _SortedNames()
        self._by_user: dict[str, _SortedNames] = {}

    def add(self, name: str, users: tuple[str, ...]) -> None:
        """Add a name that is not there yet."""
        self._all.add(name)
        for user in users:
            names = self._by_user.get(user)
            if names is None:
                names = self._by_user[user] = _SortedNames()
            names.add(name)

    def remove(self, name: str, users: tuple[str, ...]) -> None:
        """Remove a name that was added with these `users`."""
        self._all.remove(name)
        for user in users:
            names = self._by_user[user]
            names.remove(name)
            if not names:
                del self._by_user[user]

    def select(self, user: str | None, after: str | None) -> Iterator[str]:
        """Yield the names for `user` or everyone, or all of them, in order; only those after the name `after`."""
        if user is None:
            yield from self._all.after(after)
            return
        found = [names for who in {user, EVERYONE} if (names := self._by_user.get(who)) is not None]
        yield from merge(*[names.after(after) for names in found])


class _SortedNames:
    """Names that are sorted when they are read. What was sorted before is sorted again in linear time."""

    __slots__ = ("_members", "_sorted")

    def __init__(self) -> None:
        self._members: dict[str, None] = {}
        self._sorted: list[str] | None = None

    def __len__(self) -> int:
        return len(self._members)

    def add(self, name: str) -> None:
        self._members[name] = None
        self._sorted = None

    def remove(self, name: str) -> None:
        del self._members[name]
        self._sorted = None

    def after(self, name: str | None) -> Iterator[str]:
        if self._sorted is None:
            self._sorted = sorted(self._members)
            # Sorting what is in order already takes a tenth of the time.
            self._members = dict.fromkeys(self._sorted)
        start = 0 if name is None else bisect_right(self._sorted, name)
        for index in range(start, len(self._sorted)):
            yield self._sorted[index]
