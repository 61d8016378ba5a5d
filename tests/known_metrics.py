"""The metrics that a hub can show, with the labels of each: what the documentation, dashboard and alerts may name."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from ssehub.control_keys import Right
from ssehub.fanout.statistics import Statistics
from ssehub.rights import KeyRefusal
from ssehub.settings import Backpressure, Retention, RunLimits, Streams
from ssehub.web.metrics import HubCollector

STATUSES = ("200", "400", "401", "403", "404", "405", "409", "413", "429", "500", "503")
FILES = ("config", "secret_file", "jwks", "control_keys_file", "tls_cert_file", "control_tls_cert_file")


def full_statistics() -> Statistics:
    """Return statistics in which nothing is missing: every limit is set, and everything with labels has happened."""
    process = ProcessCollector(registry=None).collect()
    statistics = Statistics(
        control_requests={"orders": {right.value: 1 for right in Right}},
        refused_keys={"orders": {reason.value: 1 for reason in KeyRefusal}},
        control_responses=dict.fromkeys(STATUSES, 1),
        reload_failures=dict.fromkeys(FILES, 1),
        reload_failed=dict.fromkeys(FILES, False),
        tls_not_after={"client": 2e9, "control": 2e9},
        process={sample.name: sample.value for family in process for sample in family.samples},
        build={"version": "1.0", "python": "3.13.0", "broker": "MemoryBroker"},
    )
    statistics.set_limits(Streams(max_connections=10), Retention(), Backpressure(), RunLimits())
    return statistics


def known_metrics(statistics: Mapping[str, Statistics] | None = None) -> list[Metric]:
    """Return all metrics, each with its samples."""
    return list(HubCollector(statistics or {"": full_statistics()}).collect())


def exposed_name(metric: Metric) -> str:
    """Return the name of a metric as queries use it, and as the documentation writes it."""
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def labels_of(metric: Metric) -> set[str]:
    """Return the names of the labels of a metric, without `le`."""
    return {label for sample in metric.samples for label in sample.labels} - {"le"}
