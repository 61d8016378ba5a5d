"""`GET /metrics`: the statistics of hubs in Prometheus' format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.responses import Response

from ..fanout.statistics import Statistics
from ..rights import Right
from .board import Board, statistics_by_worker
from .description import TEXT, Answer, Description
from .endpoint import Endpoint
from .process_metrics import process_metrics
from .requests import ControlRequest
from .schemas import STRING

OPENMETRICS = "application/openmetrics-text"


class Metrics(Endpoint):
    """`GET /metrics`."""

    path = "/metrics"
    method = "GET"
    right = Right.READ
    description = Description(
        "getMetrics",
        "Read the metrics of all workers",
        [Answer(200, "The format of Prometheus that `Accept` prefers.", {TEXT: STRING, OPENMETRICS: STRING})],
    )

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board

    async def respond(self, request: ControlRequest) -> Response:
        workers, missing = await statistics_by_worker(self._board)
        is_of_one = len(workers) + len(missing) == 1
        statistics = {"" if is_of_one else name: one for name, one in workers.items()}
        registry = CollectorRegistry()
        registry.register(HubCollector(statistics))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type, "Vary": "Accept"})


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
        ("subscribers_max", "Most open streams of the process (max_connections).", stats.subscribers_max),
        ("watchers", "Open streams of runs, which count as subscribers, too.", stats.watchers),
        ("watched_runs", "Runs that are followed for their watchers.", stats.watched_runs),
        ("run_waits", "Clients that wait for a run to appear.", stats.run_waits),
        ("run_waits_max", "Most clients that may wait for a run (max_run_waits).", stats.run_waits_max),
        ("channels", "Channels with at least one open stream.", stats.channels),
        ("patterns", "Patterns with at least one open stream.", stats.patterns),
        ("lagging", "Streams whose backlog is over its bound.", stats.lagging),
        ("backlog_bytes", "Bytes in backlogs, which connections have not accepted yet.", stats.backlog_bytes),
        (
            "backlog_bytes_max",
            "Bytes in backlogs above which streams end (max_total_backlog_bytes).",
            stats.backlog_bytes_max,
        ),
        ("waiting_bytes", "Bytes of events that wait for a round.", stats.waiting_bytes),
        (
            "waiting_bytes_max",
            "Bytes of waiting events above which publishers wait (max_waiting_bytes).",
            stats.waiting_bytes_max,
        ),
        (
            "waiting_publishers",
            "Publishers that wait for capacity, or for slow clients of their channels.",
            stats.waiting_publishers,
        ),
        (
            "waiting_publishers_max",
            "Most publishers that may wait (max_waiting_publishers).",
            stats.waiting_publishers_max,
        ),
        ("history_events", "Retained events.", stats.history_events),
        ("history_events_max", "Most retained events (history_events).", stats.history_events_max),
        ("history_bytes", "Bytes held by retained events.", stats.history_bytes),
        ("history_bytes_max", "Most bytes held by retained events (history_bytes).", stats.history_bytes_max),
        ("revocations", "Revocations in force.", stats.revocations),
        (
            "revocations_max",
            "Revocations of which the table is full, so that no more are accepted.",
            stats.revocations_max,
        ),
        ("runs_max", "Most runs, in all states together (max_runs).", stats.runs_max),
        (
            "run_bytes",
            "Bytes of all runs, with 32 bytes for each event, and 256 for each user and channel.",
            stats.run_bytes,
        ),
        ("run_bytes_max", "Most bytes of all runs (max_runs_bytes).", stats.run_bytes_max),
        ("run_producers", "Producers that append to runs at present.", stats.run_producers),
        ("pipes", "Pipes of publishers that are open at present.", stats.pipes),
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
    for name, help, label, values in (
        ("runs", "Runs, including those that are kept after their end.", "state", stats.runs),
        ("tls_not_after_seconds", "When the certificate of the port ends, in Unix time.", "port", stats.tls_not_after),
        (
            "reload_failed",
            "1 while a file that has been read again can't be used, so that what was read before is in use.",
            "file",
            stats.reload_failed,
        ),
    ):
        yield _by(label, name, help, values, GaugeMetricFamily)
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
        (
            "refused",
            "Requests that the client app refused for other reasons than their token, by reason.",
            "reason",
            stats.refused,
        ),
        ("tokens_refused", "Tokens refused by the client app, by reason.", "reason", stats.refused_tokens),
        ("resets", "Clients told that they may have missed events, by reason.", "reason", stats.resets),
        (
            "reload_failures",
            "Times a file of secrets, keys, certificates or settings could not be used when it was read again.",
            "file",
            stats.reload_failures,
        ),
        ("appends_refused", "Appends refused or ended by the hub, by reason.", "reason", stats.refused_appends),
        ("control_refused", "Requests refused by the control app, by reason.", "reason", stats.refused_control),
        ("control_responses", "Responses of the control app, by status.", "status", stats.control_responses),
        ("logouts", "Back-channel logouts, by result.", "result", stats.logouts),
    ):
        yield _by(label, name, help, counts)
    yield _by_two(
        ("key", "right"), "control_requests", "Requests to the control app, by key and right.", stats.control_requests
    )
    yield _by_two(
        ("key", "reason"),
        "control_keys_refused",
        "Requests to the control app that were refused because of their key, by key and reason.",
        stats.refused_keys,
    )
    yield _by_two(
        ("port", "reason"),
        "connections_refused",
        "Connections ended by the server, or requests that it did not pass to the app, by port and reason.",
        stats.refused_connections,
    )
    yield _histogram(
        "round_seconds", "Duration of rounds.", stats.round_bounds, stats.round_counts, stats.round_seconds
    )
    yield _histogram(
        "delivery_seconds",
        "Seconds from when the log stored an event until it was written to the last of its streams here.",
        stats.delivery_bounds,
        stats.delivery_counts,
        stats.delivery_seconds,
    )
    yield _build_info(stats)
    yield from process_metrics(stats)


def _build_info(stats: Statistics) -> Metric:
    help = "Always 1. The labels say which versions this is, and which broker it has."
    family = GaugeMetricFamily("ssehub_build_info", help, labels=list(stats.build))
    if stats.build:
        family.add_metric(list(stats.build.values()), 1)
    return family


def _by(
    label: str,
    name: str,
    help: str,
    values: Mapping[str, float],
    family_of: type[CounterMetricFamily | GaugeMetricFamily] = CounterMetricFamily,
) -> Metric:
    family = family_of(f"ssehub_{name}", help, labels=[label])
    for value_of_label, value in values.items():
        family.add_metric([value_of_label], value)
    return family


def _by_two(labels: tuple[str, str], name: str, help: str, counts: Mapping[str, Mapping[str, int]]) -> Metric:
    family = CounterMetricFamily(f"ssehub_{name}", help, labels=labels)
    for first, of_first in counts.items():
        for second, count in of_first.items():
            family.add_metric([first, second], count)
    return family


def _histogram(name: str, help: str, bounds: Sequence[float], counts: Sequence[int], seconds: float) -> Metric:
    total, buckets = 0, []
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        total += count
        buckets.append((str(bound), total))
    return HistogramMetricFamily(f"ssehub_{name}", help, buckets, seconds)
