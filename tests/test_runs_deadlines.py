"""Deadlines that are put off, and tombstones."""

from __future__ import annotations

from ssehub.runs.deadlines import (
    LATE_SECONDS,
    NEVER,
    REST_SECONDS,
    SPARE_ENTRIES,
    TICK_SECONDS,
    Deadlines,
    Lateness,
    Looks,
    Tombstones,
)


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


def test_nothing_is_looked_at_until_a_deadline_is_reached() -> None:
    looks = Looks(0.0)

    looks.plan(0.0, 20.0)
    first = looks.next
    acts = [looks.acts(20.0)]
    looks.plan(20.0, 0.0)
    acts.append(looks.acts(looks.next))

    # The first may be the first thing that happens in a process that was suspended, which has read nothing yet.
    assert (first, acts) == (20.0, [False, True])
    assert looks.next == 20.0 + 2 * TICK_SECONDS


def test_earlier_deadline_moves_the_next_look_and_a_later_one_does_so_too() -> None:
    looks = Looks(0.0)

    times = []
    for now, seconds in ((0.0, 20.0), (1.0, 2.0), (2.0, 0.01), (2.1, 20.0), (2.2, -1.0)):
        looks.plan(now, seconds)
        times.append(looks.next)

    assert times == [20.0, 3.0, 2.0 + TICK_SECONDS, 22.1, 2.2 + TICK_SECONDS]


def test_deadlines_that_have_passed_do_not_put_the_look_off() -> None:
    looks = Looks(0.0)

    for now in range(1, 20):
        looks.plan(now / 100, -1.0)

    assert looks.next == TICK_SECONDS
    assert looks.acts(TICK_SECONDS)


def test_look_that_rests_acts_at_once_unless_it_is_late() -> None:
    looks = Looks(0.0)

    looks.plan(0.0, NEVER)
    looks.plan(10.0, NEVER)
    rested = looks.next
    acts = [looks.acts(rested)]
    looks.plan(rested, NEVER)
    acts.append(looks.acts(looks.next + LATE_SECONDS + 0.1))

    assert (rested, acts) == (REST_SECONDS, [True, False])
