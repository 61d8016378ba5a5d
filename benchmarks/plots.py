"""The plots of docs/laboratory.md, made from the results of run.py."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

COLOURS = {"ssehub": "#1f6feb", "nchan": "#e36209", "sse-starlette": "#8b949e", "ssehub, plain uvicorn": "#79b8ff"}
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
    measured = [results[name]["figures"] for name in workloads]
    width = 0.2
    seen: set[str] = set()
    for group, figures in enumerate(measured):
        peers = [peer for peer in COLOURS if peer in figures]
        for index, peer in enumerate(peers):
            x = group + (index - (len(peers) - 1) / 2) * width
            median, low, high = statistics.median(figures[peer]), min(figures[peer]), max(figures[peer])
            label = None if peer in seen else peer
            spread = [[median - low], [high - median]]
            axes.bar(x, median, width * 0.92, yerr=spread, capsize=3, color=COLOURS[peer], label=label)
            axes.annotate(f"{median / 1000:,.0f}k", (x, high), (0, 4), textcoords="offset points", ha="center")
            seen.add(peer)
    axes.set_xticks(range(len(workloads)), labels)
    axes.set_xlim(-0.5, len(workloads) - 0.5)
    axes.margins(y=0.12)
    axes.set_ylabel("deliveries per server CPU second")
    axes.yaxis.set_major_formatter(THOUSANDS)
    axes.set_title("Deliveries per CPU second: median and range of the runs")
    axes.legend(frameon=False)


def growth(results: dict[str, Any], axes: Axes) -> None:
    for peer, points in results["growth"]["figures"].items():
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[peer], label=peer)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("subscribers of one channel")
    axes.set_ylabel("server CPU time per delivery (µs)")
    axes.set_title("Cost of a delivery by number of subscribers (one publisher, closed loop)")
    axes.legend(frameon=False)


def latency(results: dict[str, Any], axes: Axes) -> None:
    for peer, points in results["latency"]["figures"].items():
        rates = [rate for rate, _, _ in points]
        axes.plot(rates, [p50 for _, p50, _ in points], "o-", color=COLOURS[peer], label=f"{peer}, median")
        axes.plot(rates, [p99 for _, _, p99 in points], "o:", color=COLOURS[peer], label=f"{peer}, 99 %")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [50, 100, 200, 400, 800, 1_600, 3_200, 6_400]
    fastest = max(rate for points in results["latency"]["figures"].values() for rate, _, _ in points)
    axes.set_xticks([tick for tick in ticks if tick <= fastest], minor=False)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("events published per second, to 1,000 subscribers")
    axes.set_ylabel("latency, publish to receive (ms)")
    axes.set_title("Latency by publishing rate, up to a median over 200 ms")
    axes.legend(frameon=False)


def memory(results: dict[str, Any], axes: Axes) -> None:
    found = results["M"]["figures"]
    peers = list(found)
    values = [statistics.median(found[peer]) for peer in peers]
    bars = axes.barh(peers, values, color=[COLOURS[peer] for peer in peers], height=0.6)
    axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel("server memory per idle subscriber (bytes)")
    axes.set_title("Memory: 10,000 idle subscribers")


PLOTS: dict[str, tuple[Callable[[dict[str, Any], Axes], None], set[str]]] = {
    "deliveries": (deliveries, {"W1", "W2", "W3"}),
    "growth": (growth, {"growth"}),
    "latency": (latency, {"latency"}),
    "memory": (memory, {"M"}),
}
"""The function that draws each plot, and the workloads it needs."""
