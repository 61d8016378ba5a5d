"""The check that one subscriber receives each event once and in order."""

from __future__ import annotations

from .stamps import Content

MAX_MISSING = 100_000


class Faults:
    """The faults found in the sequences of all subscribers of a process."""

    __slots__ = ("duplicates", "gaps", "reordered")

    def __init__(self) -> None:
        self.gaps = 0
        self.duplicates = 0
        self.reordered = 0


class Sequences:
    """The sequence numbers that one subscriber has received from each publisher.

    A number above the expected one leaves a gap. If one of the missing numbers arrives later, its event was reordered
    and not lost; any other number below the expected one is a duplicate. At most MAX_MISSING missing numbers are
    remembered: a late event beyond them counts as a duplicate.
    """

    __slots__ = ("_expected", "_faults", "_missing")

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._expected: dict[int, int] = {}
        self._missing: set[tuple[int, int]] = set()

    def check(self, content: Content) -> None:
        for span in content.spans:
            publisher, first, last = span
            if self._expected.get(publisher, 0) == first:
                self._expected[publisher] = last + 1
            else:
                for number in range(first, last + 1):
                    self._check_number(publisher, number)

    def _check_number(self, publisher: int, number: int) -> None:
        expected = self._expected.get(publisher, 0)
        if number >= expected:
            self._faults.gaps += number - expected
            if len(self._missing) < MAX_MISSING:
                self._missing.update((publisher, missing) for missing in range(expected, number))
            self._expected[publisher] = number + 1
        elif (publisher, number) in self._missing:
            self._missing.discard((publisher, number))
            self._faults.gaps -= 1
            self._faults.reordered += 1
        else:
            self._faults.duplicates += 1
