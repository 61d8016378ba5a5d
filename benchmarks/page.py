"""The tables of docs/performance.md and docs/laboratory.md, and their plots, made from the results of run.py."""

from __future__ import annotations

import operator
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import BUSY_SHARE, MOST_DELAY, NUMBERED
from peers import BARE, CENTRIFUGO, GO_SSE, NCHAN, OURS, README, TASKS

DOCS = Path(__file__).parent.parent / "docs"
COMPARED = (
    ("W1, deliveries per CPU second", "W1", "deliveries"),
    ("W2, deliveries per CPU second", "W2", "deliveries"),
    ("W3, deliveries per CPU second", "W3", "deliveries"),
    ("W3, ms, median latency", "W3", "p50"),
    ("W4, ms, median latency", "W4", "p50"),
    ("… 99 %", "W4", "p99"),
    ("… µs of CPU time for each event", "W4", "CPU"),
    ("L2, ms, median latency", "L2", "p50"),
    ("… 99 %", "L2", "p99"),
    ("L3, ms, median latency", "L3", "p50"),
    ("… 99 %", "L3", "p99"),
    ("P1, requests per CPU second", "P1", "requests"),
    ("C, connections per CPU second", "C", "connections"),
    ("M, bytes per subscriber", "M", "bytes"),
)
"""The rows of the comparison: a workload, and the figure of each server."""
SERVERS = (OURS, NCHAN, CENTRIFUGO, GO_SSE, README, TASKS, BARE)
ALWAYS = (OURS, NCHAN)
"""The servers that have a column even if they have not been measured."""
RATES = (10, 20, 50, 80, 100)
"""The rates at which latency is compared; at higher ones, servers may fall behind."""

OVER_TLS = (
    ("W1, deliveries per CPU second", "W1", "deliveries"),
    ("W2 with an event every 2 s, deliveries per CPU second", "W2", "deliveries"),
    ("… latency in ms, median", "W2", "p50"),
    ("… latency in ms, 99 %", "W2", "p99"),
    ("L2, deliveries per CPU second", "L2", "deliveries"),
    ("… latency in ms, median", "L2", "p50"),
    ("… latency in ms, 99 %", "L2", "p99"),
    ("C, new streams per CPU second", "C", "connections"),
    ("M, bytes of an idle stream", "M", "bytes"),
)
CONNECTIONS = ("plain", "P-256", "P-256, resumed", "RSA 2048", "RSA 2048, resumed")

Figures = dict[str, list[float]]
Result = dict[str, Any]
Results = dict[str, Result]


@dataclass(frozen=True)
class Quantity:
    """A value for each run, computed from the figures with these names."""

    names: tuple[str, ...]
    combined: Callable[..., float] = operator.pos

    def values(self, figures: Figures) -> list[float]:
        return [self.combined(*values) for values in zip(*(figures[name] for name in self.names), strict=True)]


def of(name: str) -> Quantity:
    """The figures themselves."""
    return Quantity((name,))


def ratio(above: str, below: str) -> Quantity:
    """The quotient of each pair of figures."""
    return Quantity((above, below), operator.truediv)


def excess(above: str, below: str) -> Quantity:
    """The difference of each pair of figures."""
    return Quantity((above, below), operator.sub)


def ours(figure: str) -> Quantity:
    return of(f"{OURS}: {figure}")


def against(peer: str, figure: str, own: str = OURS) -> Quantity:
    return ratio(f"{own}: {figure}", f"{peer}: {figure}")


@dataclass(frozen=True)
class Row:
    """One line of the table: a quantity of a workload, and the values it should reach, or with `at_most` stay below."""

    label: str
    workload: str
    quantity: Quantity
    required: float | None = None
    aim: float | None = None
    unit: str = ""
    at_most: bool = False
    may_be_busy: bool = False
    """True if the load should be slower than the hub."""

    def cells(self, results: Results) -> tuple[str, ...]:
        return (
            self.label,
            self._target(self.required),
            self._target(self.aim),
            self._reached(results),
            load_of(results[self.workload], self.quantity.names) if self.workload in results else "",
            command(self.workload),
        )

    def _target(self, value: float | None) -> str:
        if value is None:
            return ""
        return f"{'at most ' if self.at_most else ''}{value:,g}{self.unit}"

    def _reached(self, results: Results) -> str:
        if self.workload not in results:
            return "**not measured**"
        result = results[self.workload]
        try:
            values = self.quantity.values(result["figures"])
        except KeyError as exc:
            return f"**not measured**: no {exc.args[0]}"
        if not self.may_be_busy and (reason := doubt(result, self.quantity.names)):
            return f"**no result**: {reason}"
        return f"{spread(values, self.unit)}{self._verdict(statistics.median(values))}"

    def _verdict(self, value: float) -> str:
        if self._misses(value, self.required):
            return ", **missed**"
        return ", under the aim" if self._misses(value, self.aim) else ""

    def _misses(self, value: float, target: float | None) -> bool:
        return target is not None and (value > target if self.at_most else value < target)


def run_names(names: Iterable[str]) -> list[str]:
    """Return the names of the runs that have the figures with these names."""
    return [name.partition(": ")[0] for name in names]


def doubt(result: Result, names: Iterable[str]) -> str | None:
    """Return why these figures are no result, if their load was too busy or too late."""
    runs = run_names(names)
    share = max((result["shares"].get(run, 0.0) for run in runs), default=0.0)
    delay = max((result["delays"].get(run, 0.0) for run in runs), default=0.0)
    if share > BUSY_SHARE:
        return f"the load was {share:.0%} busy"
    return f"it took {delay:.2f} times as long as planned" if delay > MOST_DELAY else None


def load_of(result: Result, names: Iterable[str]) -> str:
    """Return which generators made these figures, and how busy they were at most."""
    runs = run_names(names)
    used = sorted({result["generators"][run] for run in runs if run in result["generators"]})
    shares = [result["shares"][run] for run in runs if run in result["shares"]]
    return f"{', '.join(used)}, {max(shares):.0%}" if shares else ""


def _rows_by_rate() -> Iterator[Row]:
    for rate in RATES:
        for figure, required, aim in (("p50", 1.5, 1.1), ("p99", 1.75, 1.25)):
            label = f"1,000 subscribers, {rate} events a second, {figure} against nchan"
            ratio_to_nchan = ratio(f"{OURS}, {rate}: {figure}", f"{NCHAN}, {rate}: {figure}")
            yield Row(label, "latency", ratio_to_nchan, required, aim, "x", at_most=True)


ROWS = (
    Row("W1 against nchan", "W1", against(NCHAN, "deliveries"), 4, 10, "x"),
    Row("W2 against nchan", "W2", against(NCHAN, "deliveries"), 1.1, 1.3, "x"),
    Row("W3 against nchan", "W3", against(NCHAN, "deliveries"), 2, 3, "x"),
    Row("W3, median latency against Centrifugo", "W3", against(CENTRIFUGO, "p50"), 1.5, 1, "x", at_most=True),
    Row("W4, median latency against nchan", "W4", against(NCHAN, "p50"), 1.5, 1.1, "x", at_most=True),
    Row("W4, CPU time of an event against nchan", "W4", against(NCHAN, "CPU"), 2, 1.3, "x", at_most=True),
    Row("L2, median latency against nchan", "L2", against(NCHAN, "p50"), 1.1, 0.9, "x", at_most=True),
    Row("L2, 99 % against nchan", "L2", against(NCHAN, "p99"), 1.1, 0.9, "x", at_most=True),
    Row("L3, median latency against nchan", "L3", against(NCHAN, "p50"), 1.1, 0.9, "x", at_most=True),
    Row("L3, 99 % against nchan", "L3", against(NCHAN, "p99"), 1.1, 0.9, "x", at_most=True),
    *_rows_by_rate(),
    Row("P1, single POSTs, events per CPU second", "P1", ours("requests"), 20_000, 28_000),
    Row("P1 against a bare ASGI app under uvicorn", "P1", against(BARE, "requests"), 0.6, 0.85, "x"),
    Row("P1 with a head that differs in each request", "P1", of(f"{OURS}, {NUMBERED}: requests")),
    Row(
        "… against a bare ASGI app under uvicorn",
        "P1",
        ratio(f"{OURS}, {NUMBERED}: requests", f"{BARE}, {NUMBERED}: requests"),
        unit="x",
    ),
    Row("P1 against nchan", "P1", against(NCHAN, "requests"), unit="x"),
    Row("P100, batches of 100, events per CPU second", "P100", ours("events"), 120_000, 300_000),
    Row("W5, events per CPU second", "W5", ours("events"), 12_000, 20_000),
    Row("C, connections per CPU second", "C", ours("connections"), 8_000, 15_000),
    Row("C against nchan", "C", against(NCHAN, "connections"), unit="x"),
    Row("M, bytes per idle subscriber", "M", ours("bytes"), 7_500, 5_000, at_most=True),
    Row("idle process, wake-ups a second", "idle", of("0: wake-ups"), 5, 1, at_most=True),
    Row("… with 10,000 streams", "idle", of("10000: wake-ups")),
    Row(
        "W1 with one stalled subscriber, against W1 without",
        "stalled",
        ratio("with: deliveries", "without: deliveries"),
        0.97,
        1,
        "x",
    ),
    Row("W1 with history, against W1 without", "history", ratio("on: deliveries", "off: deliveries"), 0.95, None, "x"),
    Row("W1 against the README server", "W1", against(README, "deliveries"), unit="x"),
    Row(
        "W1 through `TaskSink` (plain uvicorn) against the README server",
        "W1",
        against(README, "deliveries", TASKS),
        10,
        20,
        "x",
    ),
    Row(
        "W1 with two workers, against one, per CPU second",
        "workers",
        ratio("2: deliveries", "1: deliveries"),
        0.8,
        None,
        "x",
    ),
    Row(
        "… at 200 events per second",
        "workers",
        ratio("2, 200 a second: deliveries", "1, 200 a second: deliveries"),
        0.8,
        None,
        "x",
    ),
    Row(
        "two workers: the larger share of 1,000 streams",
        "workers",
        of("streams: larger share, %"),
        60,
        None,
        " %",
        True,
    ),
    Row(
        "Redis, median latency in excess of that in memory",
        "redis",
        excess("redis: p50", "memory: p50"),
        1,
        None,
        " ms",
        at_most=True,
    ),
    Row("Redis, 100,000 events in batches of 100: events per second", "redis", of("redis, batches: events a second")),
    Row("… CPU time of the hub", "redis", of("redis, batches: seconds of the node"), unit=" s"),
    Row("… CPU time of Redis", "redis", of("redis, batches: seconds of Redis"), unit=" s"),
    Row("… in memory: events per second", "redis", of("memory, batches: events a second")),
    Row("SQLite, events per second from 1 publisher", "sqlite", of("sqlite, 1: events a second")),
    Row("… in memory", "sqlite", of("memory, 1: events a second")),
    Row("SQLite, events per second from 50 publishers", "sqlite", of("sqlite, 50: events a second")),
    Row("… in memory", "sqlite", of("memory, 50: events a second")),
    Row("19,000 subscribers: longest gap in the event loop", "lag", of("lag: longest gap, ms"), 20, None, " ms", True),
    Row(
        "19,000 subscribers: slowest first frame of a new stream",
        "lag",
        of("lag: slowest newcomer, ms"),
        100,
        None,
        " ms",
        True,
    ),
    Row(
        "publishers faster than sockets, without loss: duration",
        "pressure",
        of("pressure: seconds"),
        unit=" s",
        may_be_busy=True,
    ),
    Row(
        "… highest memory, against that after 10 s",
        "pressure",
        ratio("pressure: MiB at most", "pressure: MiB after 10 s"),
        1.1,
        None,
        "x",
        at_most=True,
        may_be_busy=True,
    ),
    Row("W1 over TLS, against W1 without", "tls", ratio("W1, TLS: deliveries", "W1, plain: deliveries"), unit="x"),
    Row("W2 over TLS, against W2 without", "tls", ratio("W2, TLS: deliveries", "W2, plain: deliveries"), unit="x"),
    Row("C over TLS, against C without", "handshakes", ratio("C, TLS: connections", "C, plain: connections"), unit="x"),
    Row("M over TLS, bytes per idle subscriber", "handshakes", of("M, TLS: bytes")),
    Row("`ssehub bench`, events read per CPU second, each alone", "reader", of("alone: events"), 200_000),
    Row("… events per read in that run", "reader", of("alone: events in a read"), 1.1, at_most=True),
    Row("… 64 written together", "reader", of("64 together: events"), 600_000),
)


PER_CPU_SECOND, A_SECOND, MS = " per CPU second", " a second", " ms"

EXPECTATIONS = (
    ("an idle stream: memory of the process", "M", ours("bytes"), " bytes"),
    ("deliveries of single events, each to 10,000 streams", "W2", ours("deliveries"), PER_CPU_SECOND),
    (
        "deliveries to 1,000 streams, events as fast as one publisher sends them",
        "W1",
        ours("deliveries"),
        PER_CPU_SECOND,
    ),
    ("deliveries to 100 streams, likewise", "W3", ours("deliveries"), PER_CPU_SECOND),
    ("from publishing to receiving, one stream, 200 events a second: median", "W4", ours("p50"), MS),
    ("… 99 %", "W4", ours("p99"), MS),
    ("… CPU time of an event", "W4", ours("CPU"), " µs"),
    ("from publishing to receiving, 1,000 streams, 20 events a second: median", "L2", ours("p50"), MS),
    ("… 99 %", "L2", ours("p99"), MS),
    ("… 50 events a second: median", "L3", ours("p50"), MS),
    ("… 99 %", "L3", ours("p99"), MS),
    ("events to single users, of 1,000", "W5", ours("events"), PER_CPU_SECOND),
    ("publishing alone, one event in each request", "P1", ours("requests"), PER_CPU_SECOND),
    ("publishing alone, 100 events in each request", "P100", ours("events"), PER_CPU_SECOND),
    ("new streams, each with its own token", "C", ours("connections"), PER_CPU_SECOND),
    ("wake-ups of an idle process", "idle", of("0: wake-ups"), A_SECOND),
    ("19,000 streams: the most by which the event loop is late", "lag", of("lag: longest gap, ms"), MS),
    ("… a new stream opens within", "lag", of("lag: slowest newcomer, ms"), MS),
    ("SQLite, events from one publisher", "sqlite", of("sqlite, 1: events a second"), A_SECOND),
    ("… from 50 publishers", "sqlite", of("sqlite, 50: events a second"), A_SECOND),
    ("Redis, batches of 100 events", "redis", of("redis, batches: events a second"), " events a second"),
    ("… more latency than in memory, at the median", "redis", excess("redis: p50", "memory: p50"), MS),
)
"""What the first table of docs/performance.md says: a label, a workload, its quantity, and the unit."""


def expectations(results: Results) -> str:
    """Return the table of what to expect, for docs/performance.md."""
    lines = table_head(["", "measured", "workload"])
    for label, workload, quantity, unit in EXPECTATIONS:
        result = results.get(workload)
        if result is None or not set(quantity.names) <= result["figures"].keys():
            measured = "not measured"
        elif reason := doubt(result, quantity.names):
            measured = f"no result: {reason}"
        else:
            measured = rounded(statistics.median(quantity.values(result["figures"]))) + unit
        lines.append(line([label, measured, f"`{workload}`"]))
    return "\n".join(lines)


def rounded(value: float) -> str:
    """Return a number with two significant digits."""
    shortened = float(f"{value:.2g}")
    return f"{shortened:,.0f}" if shortened >= 10 else f"{shortened:g}"


def spread(figures: Sequence[float], unit: str = "") -> str:
    """Return the median, and the range of the figures if there are several."""
    median = f"{number(statistics.median(figures))}{unit}"
    return f"{median} ({number(min(figures))} to {number(max(figures))})" if len(figures) > 1 else median


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def command(workload: str) -> str:
    return f'`make bench ARGS="{workload}"`'


def cell(result: Result, name: str) -> str:
    """Return one figure of a table, empty if it has not been measured."""
    if name not in result["figures"]:
        return ""
    if reason := doubt(result, [name]):
        return f"no result: {reason}"
    return spread(result["figures"][name])


def comparison(results: Results) -> str:
    """Return the table that compares the hub with other servers, for docs/performance.md."""
    measured = {run for result in results.values() for run in result["shares"]}
    servers = [server for server in SERVERS if server in ALWAYS or server in measured]
    lines = table_head(["workload", *servers, "generator, its share of a core at most"])
    compared = set()
    for label, workload, figure in COMPARED:
        names = [f"{server}: {figure}" for server in servers]
        result = results.get(workload)
        if result is None or not set(names) & result["figures"].keys():
            lines.append(line([label, *["" for _ in names], "not measured"]))
            continue
        compared.add(workload)
        lines.append(line([label, *[cell(result, name) for name in names], load_of(result, names)]))
    return "\n\n".join(["\n".join(lines), *machines({name: results[name] for name in sorted(compared)})])


def latency(result: Result) -> str:
    """Return the table of latency and CPU share by rate, for docs/performance.md."""
    runs = [name.partition(", ") for name in result["shares"]]
    servers = [server for server in (OURS, NCHAN, CENTRIFUGO) if server in {server for server, _, _ in runs}]
    rates = sorted({int(rate) for _, _, rate in runs})
    columns = [f"{server}, {what}" for server in servers for what in ("p50", "p99", "% of a core")]
    lines = table_head(["events a second", *columns, "p50 against nchan", "p99 against nchan"])
    for rate in rates:
        cells = [cell(result, f"{server}, {rate}: {what}") for server in servers for what in ("p50", "p99", "core")]
        cells += [ratio_cell(result, f"{OURS}, {rate}: {what}", f"{NCHAN}, {rate}: {what}") for what in ("p50", "p99")]
        lines.append(line([f"{rate:,}", *cells]))
    generator = load_of(result, result["shares"])
    return "\n\n".join(
        ["\n".join(lines), f"Generator, its share of a core at most: {generator}.", *machines({"": result})]
    )


def ratio_cell(result: Result, above: str, below: str) -> str:
    quantity = ratio(above, below)
    if not set(quantity.names) <= result["figures"].keys() or doubt(result, quantity.names):
        return ""
    return spread(quantity.values(result["figures"]), "x")


def tls(results: Results) -> str:
    """Return the tables of what TLS costs, for docs/performance.md."""
    measured = {name: results[name] for name in ("tls", "handshakes")}
    lines = table_head(["", "plain", "TLS", "TLS against plain"])
    for label, name, figure in OVER_TLS:
        result = measured["tls" if f"{name}, TLS: {figure}" in measured["tls"]["figures"] else "handshakes"]
        plain, over_tls = f"{name}, plain: {figure}", f"{name}, TLS: {figure}"
        cells = [cell(result, plain), cell(result, over_tls), ratio_cell(result, over_tls, plain)]
        lines.append(line([label, *cells]))
    opened = [spread(measured["handshakes"]["figures"][f"{kind}: connections"]) for kind in CONNECTIONS]
    connections = table_head(["", *CONNECTIONS])
    connections.append(line(["streams opened one after the other, per CPU second", *opened]))
    return "\n\n".join(["\n".join(lines), "\n".join(connections), *machines(measured)])


def table(results: Results) -> str:
    """Return the table of all workloads, for docs/laboratory.md."""
    lines = table_head(["", "required", "aim", "reached", "generator, its share of a core", "command"])
    lines += [line(row.cells(results)) for row in ROWS]
    return "\n\n".join(["\n".join(lines), *machines(results), durations(results)])


def table_head(columns: Sequence[str]) -> list[str]:
    return [line(columns), "|" + "---|" * len(columns)]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def machines(results: Results) -> Iterator[str]:
    """Yield date, hardware and versions, with the names of the workloads if these do not share them all."""
    names: dict[str, list[str]] = {}
    for name, result in results.items():
        machine = result["machine"]
        text = f"{machine['date']}, {machine['cpu']}, {machine['system']}, {machine['packages']}, {machine['others']}."
        names.setdefault(text, []).append(name)
    for text, measured in names.items():
        yield text if len(names) == 1 else f"{', '.join(measured)}: {text}"


def durations(results: Results) -> str:
    durations = {name: result["seconds"] for name, result in results.items() if result["seconds"]}
    each = ", ".join(f"{name} {seconds:.0f}" for name, seconds in durations.items())
    return f"Duration in seconds: {each}; {sum(durations.values()) / 60:.1f} minutes in total."


def write(results: Results) -> None:
    """Write the tables into their pages, and the plots into the folder beside them."""
    from plots import draw

    _replace(DOCS / "performance.md", expectations(results), "make bench expectations")
    _replace(DOCS / "performance.md", comparison(results))
    if "latency" in results:
        _replace(DOCS / "performance.md", latency(results["latency"]), "make bench latency")
    if results.keys() >= {"tls", "handshakes"}:
        _replace(DOCS / "performance.md", tls(results), "make bench tls")
    _replace(DOCS / "laboratory.md", table(results))
    draw(results, DOCS / "plots")


def _replace(page: Path, text: str, mark: str = "make bench") -> None:
    """Replace what stands between `mark` and the next end in `page`."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- end -->)"
    page.write_text(
        re.sub(pattern, lambda match: f"{match[1]}{text}\n{match[2]}", page.read_text(), flags=re.DOTALL),
    )
