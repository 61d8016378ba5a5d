"""The tables of docs/performance.md and docs/laboratory.md, and their plots, made from the results of run.py."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
OURS, NCHAN, README, TASKS = "ssehub", "nchan", "sse-starlette", "ssehub, plain uvicorn"
BUSY_SHARE = 0.9
COMPARED = {
    "W1": "deliveries per CPU second",
    "W2": "deliveries per CPU second",
    "W3": "deliveries per CPU second",
    "W4": "ms, median latency",
    "M": "bytes per subscriber",
}

OVER_TLS = {
    "W1": "W1, deliveries per CPU second",
    "W2": "W2 with an event every 2 s, deliveries per CPU second",
    "W2 p50": "… latency in ms, median",
    "W2 p99": "… latency in ms, 99 %",
    "L2": "L2, deliveries per CPU second",
    "L2 p50": "… latency in ms, median",
    "L2 p99": "… latency in ms, 99 %",
    "C": "C, new streams per CPU second",
    "M": "M, bytes of an idle stream",
}
CONNECTIONS = ("plain", "P-256", "P-256, resumed", "RSA 2048", "RSA 2048, resumed")

Figures = dict[str, list[float]]
Results = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One line of the table: figures of a workload, and the values they should reach, or with `at_most` stay below."""

    label: str
    workload: str
    figures: Callable[[Figures], list[float]]
    required: float | None = None
    aim: float | None = None
    unit: str = ""
    at_most: bool = False

    def cells(self, results: Results) -> tuple[str, ...]:
        return (
            self.label,
            self._target(self.required),
            self._target(self.aim),
            self._reached(results),
            command(self.workload),
        )

    def _target(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{'at most ' if self.at_most else ''}{value:,g}{self.unit}"

    def _reached(self, results: Results) -> str:
        if self.workload not in results:
            return "**not measured**"
        try:
            figures = self.figures(results[self.workload]["figures"])
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
    """The figures themselves."""
    return lambda figures: figures[name]


def ratio(above: str, below: str) -> Callable[[Figures], list[float]]:
    """The quotient of each pair of figures."""
    return lambda figures: [a / b for a, b in zip(figures[above], figures[below], strict=True)]


def excess(above: str, below: str) -> Callable[[Figures], list[float]]:
    """The difference of each pair of figures."""
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
    Row("W1 with one stalled subscriber, against W1 without", "stalled", ratio("with", "without"), 0.97, 1, "x"),
    Row("W1 with history, against W1 without", "history", ratio("on", "off"), 0.95, None, "x"),
    Row("W1 with two workers, against one, per CPU second", "workers", ratio("2", "1"), 0.8, None, "x"),
    Row("… at 200 events per second", "workers", ratio("2, 200 a second", "1, 200 a second"), 0.8, None, "x"),
    Row(
        "two workers: the larger share of 1,000 streams", "workers", of("larger share, %"), 60, None, " %", at_most=True
    ),
    Row(
        "Redis, median latency in excess of that in memory",
        "redis",
        excess("redis, latency in ms", "memory, latency in ms"),
        1,
        None,
        " ms",
        at_most=True,
    ),
    Row("Redis, 100,000 events in batches of 100: events per second", "redis", of("redis, events a second")),
    Row("… CPU time of the hub", "redis", of("redis, seconds of the node"), unit=" s"),
    Row("… CPU time of Redis", "redis", of("redis, seconds of Redis"), unit=" s"),
    Row("… in memory: events per second", "redis", of("memory, events a second")),
    Row("SQLite, events per second from 1 publisher", "sqlite", of("sqlite, 1")),
    Row("… in memory", "sqlite", of("memory, 1")),
    Row("SQLite, events per second from 50 publishers", "sqlite", of("sqlite, 50")),
    Row("… in memory", "sqlite", of("memory, 50")),
    Row(
        "19,000 subscribers: longest gap in the event loop",
        "lag",
        of("longest gap in the loop, ms"),
        20,
        None,
        " ms",
        True,
    ),
    Row(
        "19,000 subscribers: slowest first frame of a new stream",
        "lag",
        of("slowest newcomer, ms"),
        100,
        None,
        " ms",
        True,
    ),
    Row("publishers faster than sockets, without loss: duration", "pressure", of("seconds"), unit=" s"),
    Row(
        "… highest memory, against that after 10 s",
        "pressure",
        ratio("MiB at most", "MiB after 10 s"),
        1.1,
        None,
        "x",
        at_most=True,
    ),
    Row("W1 over TLS, against W1 without", "tls", ratio("W1, TLS", "W1, plain"), unit="x"),
    Row("W2 over TLS, against W2 without", "tls", ratio("W2, TLS", "W2, plain"), unit="x"),
    Row("C over TLS, against C without", "handshakes", ratio("C, TLS", "C, plain"), unit="x"),
    Row("M over TLS, bytes per idle subscriber", "handshakes", of("M, TLS")),
    Row("`ssehub bench`, events read per CPU second, each alone", "reader", of("alone"), 200_000),
    Row("… events per read in that run", "reader", of("alone, events in a read"), 1.1, at_most=True),
    Row("… 64 written together", "reader", of("64 together"), 600_000),
)


def spread(figures: Sequence[float], unit: str = "") -> str:
    """Return the median, and the range of the figures if there are several."""
    median = f"{number(statistics.median(figures))}{unit}"
    return f"{median} ({number(min(figures))} to {number(max(figures))})" if len(figures) > 1 else median


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def command(workload: str) -> str:
    return f'`make bench ARGS="{workload}"`'


def comparison(results: Results) -> str:
    """Return the table that compares the hub with its peers, for docs/performance.md."""
    peers = [OURS, NCHAN, README, TASKS]
    lines = [f"| workload | {' | '.join(peers)} |", "|---|" + "---|" * len(peers)]
    for name, unit in COMPARED.items():
        figures = results[name]["figures"] if name in results else {}
        cells = [spread(figures[peer]) if peer in figures else "" for peer in peers]
        lines.append(f"| {name}, {unit} | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *machines({name: results[name] for name in COMPARED if name in results})])


def tls(results: Results) -> str:
    """Return the tables of what TLS costs, for docs/performance.md."""
    measured = {name: results[name] for name in ("tls", "handshakes")}
    figures = measured["tls"]["figures"] | measured["handshakes"]["figures"]
    lines = ["| | plain | TLS | TLS against plain |", "|---|---|---|---|"]
    for name, label in OVER_TLS.items():
        plain, over_tls = figures[f"{name}, plain"], figures[f"{name}, TLS"]
        ratios = ratio("TLS", "plain")({"plain": plain, "TLS": over_tls})
        lines.append(f"| {label} | {spread(plain)} | {spread(over_tls)} | {spread(ratios, 'x')} |")
    opened = [spread(figures[f"connections, {kind}"]) for kind in CONNECTIONS]
    connections = [f"| | {' | '.join(CONNECTIONS)} |", "|---|" + "---|" * len(CONNECTIONS)]
    connections.append(f"| streams opened one after the other, per CPU second | {' | '.join(opened)} |")
    return "\n\n".join(["\n".join(lines), "\n".join(connections), *machines(measured)])


def table(results: Results) -> str:
    """Return the table of all workloads, for docs/laboratory.md."""
    lines = ["| | required | aim | reached | command |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row.cells(results))} |" for row in ROWS]
    return "\n\n".join(["\n".join(lines), *machines(results), durations(results)])


def machines(results: Results) -> Iterator[str]:
    """Yield date, hardware and versions, with the names of the workloads if these do not share them all."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        machine = result["machine"]
        versions = f"{machine['system']}, {machine['packages']}, nginx {machine['nginx']}"
        names.setdefault(f"{machine['date']}, {machine['cpu']}, {versions}.", []).append(name)
    for machine, measured in names.items():
        yield machine if len(names) == 1 else f"{', '.join(measured)}: {machine}"


def durations(results: Results) -> str:
    durations = {name: result["seconds"] for name, result in results.items() if result["seconds"]}
    each = ", ".join(f"{name} {seconds:.0f}" for name, seconds in durations.items())
    return f"Duration in seconds: {each}; {sum(durations.values()) / 60:.1f} minutes in total."


def write(results: Results) -> None:
    """Write the tables into their pages, and the plots into the folder beside them."""
    from plots import draw

    _replace(DOCS / "performance.md", comparison(results))
    if results.keys() >= {"tls", "handshakes"}:
        _replace(DOCS / "performance.md", tls(results), "make bench tls")
    _replace(DOCS / "laboratory.md", table(results))
    draw(results, DOCS / "plots")


def _replace(page: Path, text: str, mark: str = "make bench") -> None:
    """Replace what stands between `mark` and the next end in `page`."""
    pattern = rf"(<!-- {mark} -->\n).*?(\n<!-- end -->)"
    page.write_text(
        re.sub(pattern, lambda match: f"{match[1]}{text}{match[2]}", page.read_text(), flags=re.DOTALL),
    )
