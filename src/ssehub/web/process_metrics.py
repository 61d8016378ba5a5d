"""`process_*` and `ssehub_build_info`: what each process measures of itself, as another one cannot do it for it."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from functools import cache
from importlib import metadata

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from ..fanout.statistics import Statistics
from ..hub import Hub

_COLLECTOR = ProcessCollector(registry=None)
_FAMILIES = tuple(_COLLECTOR.collect())
"""Their names and help. There are none where there is no /proc."""


async def measured(hub: Hub) -> Statistics:
    """Return the statistics of `hub`, with those of this process."""
    statistics = hub.statistics
    statistics.process = await asyncio.to_thread(_measure)  # it counts the open descriptors
    statistics.build = {**_build(), "broker": type(hub.broker).__name__}
    return statistics


def process_metrics(statistics: Statistics) -> Iterator[Metric]:
    """Yield the metrics of the process that measured `statistics`."""
    for family in _FAMILIES:
        metric = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            if sample.name in statistics.process:
                metric.add_sample(sample.name, {}, statistics.process[sample.name])
        yield metric


def _measure() -> dict[str, float]:
    return {sample.name: sample.value for family in _COLLECTOR.collect() for sample in family.samples}


@cache
def _build() -> dict[str, str]:
    return {"version": metadata.version("ssehub"), "python": platform.python_version()}
