"""Deadlines that are put off, and tombstones."""

from __future__ import annotations

from ssehub.runs.deadlines import LATE_SECONDS, NEVER, SPARE_ENTRIES, Deadlines, Lateness, Tombstones


class Item:
    def __init__(self) -> None:
        self.due = NEVER


def test_items_are_popped_in_the_order_of_their_deadlines() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    items = [Item() for _ in range(5)]
    for item, deadline in zip(items, (3.0, 1.0, 2.0, 5.0, 2.0), strict=True):
        deadlines.watch(item, deadline)

    assert list(deadlines.pop(0.9, 10)) == []
    assert list(deadlines.pop(4.0, 3)) == [items[1], items[2], items[4]]
    assert list(deadlines.pop(4.0, 3)) == [items[0]]
    assert items[0].due == NEVER and items[3].due == 5.0


def test_later_deadline_adds_no_entry_and_an_earlier_one_counts_instead() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    item = Item()
    deadlines.watch(item, 10.0)
    for deadline in range(11, 1_000):
        deadlines.watch(item, deadline)
    assert len(deadlines) == 1
    deadlines.watch(item, 5.0)

    assert list(deadlines.pop(7.0, 10)) == [item]
    assert list(deadlines.pop(20.0, 10)) == [None]


def test_forgotten_items_do_not_pile_up() -> None:
    deadlines: Deadlines[Item] = Deadlines()
    kept = Item()
    deadlines.watch(kept, 50.0)
    for deadline in range(10_000):
        item = Item()
        deadlines.watch(item, float(deadline))
        deadlines.forget(item)
        assert len(deadlines) <= SPARE_ENTRIES + 10

    assert [item for item in deadlines.pop(NEVER, 10_000) if item is not None] == [kept]


def test_oldest_tombstones_are_forgotten() -> None:
    tombstones = Tombstones(60, 3)
    for time, name in enumerate(("a", "b", "c", "a", "d")):
        tombstones.add(name, time, time)
    assert [tombstones.generation(name) for name in "abcd"] == [3, 0, 2, 4]
    tombstones.remove("d")
    tombstones.remove("unknown")
    tombstones.expire(63, 1)
    assert [tombstones.generation(name) for name in "acd"] == [3, 0, 0]
    tombstones.expire(63, 1)

    assert tombstones.generation("a") == 0


def test_late_look_is_left_out_but_never_two_in_a_row() -> None:
    lateness = Lateness()
    late = LATE_SECONDS + 0.1

    assert [lateness.skips(seconds) for seconds in (0.0, late, late, late, 0.0, late)] == [
        False,
        True,
        False,
        True,
        False,
        True,
    ]
