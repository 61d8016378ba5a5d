"""The table of docs/performance.md, and its plots, from what run.py has measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
OURS, NCHAN, README, TASKS = "ssehub", "nchan", "sse-starlette", "ssehub, plain uvicorn"
BUSY_SHARE = 0.9
COMPARED = {
    "W1": "deliveries per CPU second",
    "W2": "deliveries per CPU second",
    "W3": "deliveries per CPU second",
    "W4": "ms, median latency",
    "M": "bytes per subscriber",
}

Figures = dict[str, list[float]]
Results = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One thing to reach: which workload shows it, and what of its figures; more is better, or else `at_most`."""

    what: str
    workload: str
    reached: Callable[[Figures], list[float]]
    required: float | None = None
    aim: float | None = None
    unit: str = ""
    at_most: bool = False

    def cells(self, results: Results) -> tuple[str, ...]:
        return (
            self.what,
            self._target(self.required),
            self._target(self.aim),
            self._found(results),
            command(self.workload),
        )

    def _target(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{'at most ' if self.at_most else ''}{value:,g}{self.unit}"

    def _found(self, results: Results) -> str:
        if self.workload not in results:
            return "**not measured**"
        try:
            figures = self.reached(results[self.workload]["figures"])
        except KeyError as exc:
            return f"**not measured**: no {exc.args[0]}"
        text = f"{spread(figures, self.unit)}{self._verdict(statistics.median(figures))}"
        share = results[self.workload]["load_share"]
        return f"{text}; the load was {share:.0%} busy" if share > BUSY_SHARE else text

    def _verdict(self, value: float) -> str:
        if self._misses(value, self.required):
            return ", **missed**"
        return ", under the aim" if self._misses(value, self.aim) else ""

    def _misses(self, value: float, target: float | None) -> bool:
        return target is not None and (value > target if self.at_most else value < target)


def of(name: str) -> Callable[[Figures], list[float]]:
    return lambda figures: figures[name]


def ratio(above: str, below: str) -> Callable[[Figures], list[float]]:
    """Those of the pairs."""
    return lambda figures: [a / b for a, b in zip(figures[above], figures[below], strict=True)]


def excess(above: str, below: str) -> Callable[[Figures], list[float]]:
    return lambda figures: [a - b for a, b in zip(figures[above], figures[below], strict=True)]


ROWS = (
    Row("W1 against nchan", "W1", ratio(OURS, NCHAN), 2.5, 4, "x"),
    Row("W2 against nchan", "W2", ratio(OURS, NCHAN), 0.9, 1.1, "x"),
    Row("W3 against nchan", "W3", ratio(OURS, NCHAN), 0.7, 1, "x"),
    Row("W1 against the README server", "W1", ratio(OURS, README), 15, 40, "x"),
    Row("W1 through `TaskSink` (plain uvicorn) against the README server", "W1", ratio(TASKS, README), 5, 10, "x"),
    Row("W4, median latency against nchan", "W4", ratio(OURS, NCHAN), 2.5, 1.5, "x", at_most=True),
    Row("W5, events per CPU second", "W5", of(OURS), 8_000, 15_000),
    Row("M, bytes per idle subscriber", "M", of(OURS), 16_000, 11_000, at_most=True),
    Row("C, connections per CPU second", "C", of(OURS), 3_000, 6_000),
    Row("P1, single POSTs, events per CPU second", "P1", of(OURS), 6_000, 10_000),
    Row("P100, batches of 100, events per CPU second", "P100", of(OURS), 100_000, 250_000),
    Row("W1 with one stalled subscriber against without", "stalled", ratio("with", "without"), 0.97, 1, "x"),
    Row("W1 with history against without", "history", ratio("on", "off"), 0.95, None, "x"),
    Row("two workers against one, W1 per CPU second", "workers", ratio("2", "1"), 0.8, None, "x"),
    Row("… at 200 events a second", "workers", ratio("2, 200 a second", "1, 200 a second"), 0.8, None, "x"),
    Row(
        "two workers, the larger share of 1,000 streams", "workers", of("larger share, %"), 60, None, " %", at_most=True
    ),
    Row(
        "Redis, median latency over that in memory",
        "redis",
        excess("redis, latency in ms", "memory, latency in ms"),
        1,
        None,
        " ms",
        at_most=True,
    ),
    Row("Redis, 100,000 events in batches of 100: events a second", "redis", of("redis, events a second")),
    Row("… CPU time of the node", "redis", of("redis, seconds of the node"), unit=" s"),
    Row("… CPU time of Redis", "redis", of("redis, seconds of Redis"), unit=" s"),
    Row("… in memory: events a second", "redis", of("memory, events a second")),
    Row("SQLite, events a second from 1 publisher", "sqlite", of("sqlite, 1")),
    Row("… in memory", "sqlite", of("memory, 1")),
    Row("SQLite, events a second from 50 publishers", "sqlite", of("sqlite, 50")),
    Row("… in memory", "sqlite", of("memory, 50")),
    Row("19,000 subscribers, longest gap in the loop", "lag", of("longest gap in the loop, ms"), 20, None, " ms", True),
    Row("19,000 subscribers, slowest newcomer", "lag", of("slowest newcomer, ms"), 100, None, " ms", True),
    Row("publishers outrun sockets, nothing lost: how long", "pressure", of("seconds"), unit=" s"),
    Row(
        "… memory at most, against that after 10 s",
        "pressure",
        ratio("MiB at most", "MiB after 10 s"),
        1.1,
        None,
        "x",
        at_most=True,
    ),
    Row("`ssehub bench` reads, each event alone: a CPU second", "reader", of("alone"), 200_000),
    Row("… and so many were in a read", "reader", of("alone, events in a read"), 1.1, at_most=True),
    Row("… 64 written together", "reader", of("64 together"), 600_000),
)


def spread(figures: Sequence[float], unit: str = "") -> str:
    """The median, and between what the figures are."""
    middle = f"{number(statistics.median(figures))}{unit}"
    return f"{middle} ({number(min(figures))} to {number(max(figures))})" if len(figures) > 1 else middle


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def command(workload: str) -> str:
    return f'`make bench ARGS="{workload}"`'


def table(results: Results) -> str:
    peers = [OURS, NCHAN, README, TASKS]
    lines = ["| | required | aim | reached | command |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row.cells(results))} |" for row in ROWS]
    lines += ["", f"| workload | {' | '.join(peers)} |", "|---|" + "---|" * len(peers)]
    for name, what in COMPARED.items():
        figures = results[name]["figures"] if name in results else {}
        cells = [spread(figures[peer]) if peer in figures else "" for peer in peers]
        lines.append(f"| {name}, {what} | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *places(results), took(results)])


def places(results: Results) -> Iterator[str]:
    """When and where, with what versions; for each workload where they are not the same for all."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        there = result["there"]
        where = f"{there['cpu']}, {there['system']}, {there['packages']}, nginx {there['nginx']}"
        names.setdefault(f"{there['date']}, {where}.", []).append(name)
    for where, measured in names.items():
        yield where if len(names) == 1 else f"{', '.join(measured)}: {where}"


def took(results: Results) -> str:
    seconds = {name: result["seconds"] for name, result in results.items() if result["seconds"]}
    each = ", ".join(f"{name} {took:.0f}" for name, took in seconds.items())
    return f"Seconds: {each}; {sum(seconds.values()) / 60:.1f} minutes in all."


def write(results: Results) -> None:
    """The table into the page, and the plots beside it."""
    from plots import draw

    text = re.sub(
        r"(<!-- make bench -->\n).*(\n<!-- end -->)",
        lambda match: f"{match[1]}{table(results)}{match[2]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )
    PAGE.write_text(text)
    draw(results, PAGE.parent / "plots")
