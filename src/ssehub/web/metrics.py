"""`GET /metrics`: the statistics of hubs in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from ..fanout.statistics import Statistics
from ..revocations import MAX_REVOCATIONS
from ..rights import Right
from .board import Board, statistics_by_worker
from .endpoint import Endpoint
from .requests import ControlRequest


class Metrics(Endpoint):
    """`GET /metrics`."""

    path = "/metrics"
    method = "GET"
    right = Right.READ

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        workers, missing = await statistics_by_worker(self._board)
        is_of_one = len(workers) + len(missing) == 1
        statistics = {"" if is_of_one else name: one for name, one in workers.items()}
        registry = CollectorRegistry()
        registry.register(HubCollector(statistics))
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class HubCollector(Collector):
    """Turns statistics into metrics when they are asked for, so that counting costs the hubs nothing.

    `statistics` are by worker. A worker named `""` gets no label.
    """

    def __init__(self, statistics: Mapping[str, Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all workers."""
        for metrics in zip(*[_metrics(statistics) for statistics in self._statistics.values()], strict=True):
            merged = metrics[0]
            merged.samples = [
                sample._replace(labels={"worker": worker, **sample.labels} if worker else sample.labels)
                for worker, metric in zip(self._statistics, metrics, strict=True)
                for sample in metric.samples
            ]
            yield merged


def _metrics(stats: Statistics) -> Iterator[Metric]:
    for name, help, value in (
        ("subscribers", "Open streams.", stats.subscribers),
        ("watchers", "Open streams of runs, which count as subscribers, too.", stats.watchers),
        ("watched_runs", "Runs that are followed for their watchers.", stats.watched_runs),
        ("run_waits", "Clients that wait for a run to appear.", stats.run_waits),
        ("channels", "Channels with at least one open stream.", stats.channels),
        ("patterns", "Patterns with at least one open stream.", stats.patterns),
        ("lagging", "Streams whose backlog is over its bound.", stats.lagging),
        ("backlog_bytes", "Bytes in backlogs, which connections have not accepted yet.", stats.backlog_bytes),
        ("waiting_bytes", "Bytes of events that wait for a round.", stats.waiting_bytes),
        (
            "waiting_publishers",
            "Publishers that wait for capacity, or for slow clients of their channels.",
            stats.waiting_publishers,
        ),
        ("history_events", "Retained events.", stats.history_events),
        ("history_bytes", "Bytes held by retained events.", stats.history_bytes),
        ("revocations", "Revocations in force.", stats.revocations),
        ("revocations_max", "Revocations of which the table is full, so that no more are accepted.", MAX_REVOCATIONS),
        (
            "run_bytes",
            "Bytes of all runs, with 32 bytes for each event, and 256 for each user and channel.",
            stats.run_bytes,
        ),
        ("run_producers", "Producers that append to runs at present.", stats.run_producers),
        ("broker_ready", "1 if the log can be read and written, otherwise 0.", stats.broker_ready),
        (
            "clock_skew_seconds",
            "Seconds by which this machine's clock is ahead of that of the log in Redis.",
            stats.clock_skew_seconds,
        ),
        (
            "jwks_age_seconds",
            "Seconds since the keys at the jwks URL were last fetched; 0 without such a URL.",
            stats.jwks_age_seconds,
        ),
        ("loop_lag_seconds", "Delay of the event loop's last clock tick.", stats.loop_lag_seconds),
        (
            "memory_bytes",
            "Memory of the process that counts against the limit; 0 if it is not watched.",
            stats.memory_bytes,
        ),
        (
            "memory_limit_bytes",
            "Memory above which the hub frees some; 0 if it is not watched.",
            stats.memory_limit_bytes,
        ),
        ("memory_short", "1 while memory is short and new streams are told to come back.", stats.memory_is_short),
    ):
        yield GaugeMetricFamily(f"ssehub_{name}", help, value)
    yield _runs(stats)
    yield _tls_not_after(stats)
    for name, help, value in (
        ("streams", "Streams opened.", stats.connected),
        ("events_published", "Events published through this hub and stored.", stats.published),
        ("events_delivered", "Events written to streams.", stats.delivered),
        ("events_replayed", "Events written to streams of reconnecting clients from history.", stats.replayed),
        ("delivered_bytes", "Bytes of events written to streams.", stats.delivered_bytes),
        (
            "run_events",
            "Events appended to runs, also those sent again.",
            stats.run_events,
        ),
        ("log_skipped_entries", "Entries of the log skipped as foreign or broken.", stats.log_skipped_entries),
        ("jwks_fetch_failures", "Times the keys at the jwks URL could not be fetched.", stats.jwks_fetch_failures),
    ):
        yield CounterMetricFamily(f"ssehub_{name}", help, value)
    for name, help, label, counts in (
        ("endings", "Streams ended, by reason.", "reason", stats.endings),
        ("refused", "Streams and publishes refused, by reason.", "reason", stats.refused),
        ("tokens_refused", "Tokens refused by the client app, by reason.", "reason", stats.refused_tokens),
        ("resets", "Clients told that they may have missed events, by reason.", "reason", stats.resets),
        (
            "key_file_failures",
            "Times a file of secrets or keys could not be used when it was read again, by setting.",
            "file",
            stats.key_file_failures,
        ),
        ("appends_refused", "Appends refused or ended by the hub, by reason.", "reason", stats.refused_appends),
        ("logouts", "Back-channel logouts, by result.", "result", stats.logouts),
    ):
        yield _by(label, name, help, counts)
    yield _by_key("control_requests", "Requests to the control app, by key and right.", "right", stats.control_requests)
    yield _by_key(
        "control_refused",
        "Requests to the control app that were refused because of their key, by key and reason.",
        "reason",
        stats.control_refused,
    )
    yield _round_seconds(stats)


def _runs(stats: Statistics) -> Metric:
    family = GaugeMetricFamily("ssehub_runs", "Runs, including those that are kept after their end.", labels=["state"])
    for state, count in stats.runs.items():
        family.add_metric([state], count)
    return family


def _tls_not_after(stats: Statistics) -> Metric:
    help = "When the certificate of the port ends, in Unix time."
    family = GaugeMetricFamily("ssehub_tls_not_after_seconds", help, labels=["port"])
    for port, seconds in stats.tls_not_after.items():
        family.add_metric([port], seconds)
    return family


def _by(label: str, name: str, help: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"ssehub_{name}", help, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _by_key(name: str, help: str, label: str, counts: Mapping[str, Mapping[str, int]]) -> Metric:
    family = CounterMetricFamily(f"ssehub_{name}", help, labels=["key", label])
    for key, of_key in counts.items():
        for value, count in of_key.items():
            family.add_metric([key, value], count)
    return family


def _round_seconds(stats: Statistics) -> Metric:
    total, buckets = 0, []
    for bound, count in zip((*stats.round_bounds, "+Inf"), stats.round_counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    return HistogramMetricFamily("ssehub_round_seconds", "Duration of rounds.", buckets, stats.round_seconds)
