"""The plots of docs/performance.md and docs/laboratory.md, made from the results of run.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from page import doubt

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = {
    "ssehub": "#1f6feb",
    "nchan": "#e36209",
    "Centrifugo": "#2da44e",
    "go-sse": "#bf8700",
    "sse-starlette": "#8b949e",
    "ssehub, plain uvicorn": "#79b8ff",
}
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draw each plot whose workloads have been measured, as a PNG in `folder`."""
    folder.mkdir(exist_ok=True)
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    for name, (plot, needed) in PLOTS.items():
        if not results.keys() >= needed:
            continue
        figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
        plot(results, axes)
        axes.grid(visible=True, alpha=0.25, which="major")
        axes.set_axisbelow(True)
        figure.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close(figure)


def deliveries(results: dict[str, Any], axes: Axes) -> None:
    workloads = ("W1", "W2", "W3")
    labels = ("W1: 1,000 subscribers", "W2: 10,000 subscribers", "W3: 100 subscribers")
    width = 0.15
    seen: set[str] = set()
    for group, workload in enumerate(workloads):
        measured = of_servers(results[workload], "deliveries")
        for index, (peer, figures) in enumerate(measured.items()):
            x = group + (index - (len(measured) - 1) / 2) * width
            median, low, high = statistics.median(figures), min(figures), max(figures)
            label = None if peer in seen else peer
            spread = [[median - low], [high - median]]
            axes.bar(x, median, width * 0.92, yerr=spread, capsize=2, color=COLOURS[peer], label=label)
            axes.annotate(f"{median / 1000:,.0f}k", (x, high), (0, 4), textcoords="offset points", ha="center", size=7)
            seen.add(peer)
    axes.set_xticks(range(len(workloads)), labels)
    axes.set_xlim(-0.5, len(workloads) - 0.5)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_ylabel("deliveries per server CPU second")
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.set_title("Deliveries per CPU second: median and range of the runs")
    axes.legend(frameon=False, ncols=3)


def growth(results: dict[str, Any], axes: Axes) -> None:
    for peer, points in by_number(results["growth"], "CPU").items():
        axes.plot(list(points), list(points.values()), "o-", color=COLOURS[peer], label=peer)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel("subscribers of one channel")
    axes.set_ylabel("server CPU time per event (µs)")
    axes.set_title("Cost of an event that is delivered by itself")
    axes.legend(frameon=False)


def latency(results: dict[str, Any], axes: Axes) -> None:
    result = results["latency"]
    for figure, line in (("p50", "o-"), ("p99", "o:")):
        for peer, points in by_number(result, figure).items():
            axes.plot(list(points), list(points.values()), line, color=COLOURS[peer], label=f"{peer}, {figure}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted({int(name.partition(", ")[2]) for name in result["shares"]}), minor=False)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks([5, 10, 20, 50], minor=False)
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("events published per second, to 1,000 subscribers")
    axes.set_ylabel("latency from the due time (ms)")
    axes.set_title("Latency by rate, as long as servers keep up")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def memory(results: dict[str, Any], axes: Axes) -> None:
    found = of_servers(results["M"], "bytes")
    values = [statistics.median(figures) for figures in found.values()]
    bars = axes.barh(list(found), values, color=[COLOURS[peer] for peer in found], height=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel("server memory per idle subscriber (bytes)")
    axes.set_title("Memory: 10,000 idle subscribers")


def of_servers(result: dict[str, Any], figure: str) -> dict[str, list[float]]:
    """Return one figure of each server that has a result."""
    names = {peer: f"{peer}: {figure}" for peer in COLOURS}
    return {peer: result["figures"][name] for peer, name in names.items() if has_result(result, name)}


def by_number(result: dict[str, Any], figure: str) -> dict[str, dict[int, float]]:
    """Return the median of one figure of each server, by the number in the names of its runs."""
    found: dict[str, dict[int, float]] = {}
    for run in result["shares"]:
        peer, _, count = run.partition(", ")
        if has_result(result, f"{run}: {figure}"):
            found.setdefault(peer, {})[int(count)] = statistics.median(result["figures"][f"{run}: {figure}"])
    return found


def has_result(result: dict[str, Any], name: str) -> bool:
    return name in result["figures"] and doubt(result, [name]) is None


PLOTS: dict[str, tuple[Callable[[dict[str, Any], Axes], None], set[str]]] = {
    "deliveries": (deliveries, {"W1", "W2", "W3"}),
    "growth": (growth, {"growth"}),
    "latency": (latency, {"latency"}),
    "memory": (memory, {"M"}),
}
"""The function that draws each plot, and the workloads it needs."""
