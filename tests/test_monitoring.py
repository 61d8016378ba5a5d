"""The dashboard, the alerts and the scrape configuration of docs/monitoring.md, with Prometheus itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import CONTROL_KEY, StartHub, free_port, require, wait_until
from known_metrics import known_metrics
from redis_servers import RedisServer

pytest_plugins = ["redis_fixtures"]

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "ops" / "alerts.yaml"
DASHBOARD = json.loads((ROOT / "ops" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"job", "instance"}
SELECTOR = re.compile(r"\b((?:ssehub|process)_\w+|up)\b(?:{([^}]*)})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
KEY = {"Authorization": f"Bearer {CONTROL_KEY}"}


def rules() -> Mapping[str, str]:
    """Return the text of each alert, by its name."""
    _, *texts = ALERTS.read_text().split("- alert: ")
    return {text.partition("\n")[0]: text for text in texts}


def expression(rule: str) -> str:
    found = re.search(r"expr: (?:>-\n)?(.*?)\n        (?:for|labels):", rule, re.DOTALL)
    assert found, rule
    return found[1]


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each of its queries."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


QUERIES = [*dashboard_queries(), *((name, expression(rule)) for name, rule in rules().items())]


def samples() -> Mapping[str, list[Mapping[str, str]]]:
    """Return the labels of all samples of workers, by name."""
    found: dict[str, list[Mapping[str, str]]] = {"up": [{}]}
    for metric in known_metrics():
        for sample in metric.samples:
            found.setdefault(sample.name, []).append({**sample.labels, "worker": "0"})
    return found


SAMPLES = samples()


@pytest.mark.parametrize(("where", "query"), QUERIES, ids=[f"{where}-{n}" for n, (where, _) in enumerate(QUERIES)])
def test_query_names_metrics_labels_and_values_that_there_are(where: str, query: str) -> None:
    used = SELECTOR.findall(query)
    assert used, query
    labels = {label for name, _ in used for sample in SAMPLES[name] for label in sample} | OF_PROMETHEUS

    for name, matchers in used:
        for label, operator, value in MATCHER.findall(matchers):
            if label in OF_PROMETHEUS:
                continue
            values = {sample[label] for sample in SAMPLES[name]}
            wanted = value.split("|") if "~" in operator else [value]
            for one in wanted:
                assert any(re.fullmatch(one, each) for each in values), f"{name}: no {label} is {one}"
    for names in re.findall(r"\b(?:by|without|on) \(([^)]*)\)", query):
        assert set(re.split(", *", names)) <= labels, names


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_legend_names_labels_that_the_query_leaves(panel: Mapping[str, Any]) -> None:
    for target in panel["targets"]:
        shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        kept = set(re.split(", *", ",".join(re.findall(r"\bby \(([^)]*)\)", target["expr"]))))

        assert shown <= (kept if kept != {""} else {"instance", "worker"}), target["expr"]


def test_every_metric_has_a_place_in_the_dashboard() -> None:
    shown = {name for _, query in dashboard_queries() for name, _ in SELECTOR.findall(query)}

    assert shown == {name.removesuffix("_sum").removesuffix("_count") for name in SAMPLES} - {
        "ssehub_delivery_seconds",
        "ssehub_round_seconds",
    }


def test_rows_of_the_dashboard_are_the_headings_of_the_page() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    page = (ROOT / "docs" / "monitoring.md").read_text()

    assert rows == re.findall(r"^### (.*)$", page, re.MULTILINE)


def test_every_alert_says_what_to_do() -> None:
    assert len(rules()) >= 12
    for name, rule in rules().items():
        assert re.search(r"labels: {severity: (page|ticket)}", rule), name
        assert re.search(r'summary: ".+\."\n', rule), name
        assert re.search(r"description: >-\n +[A-Z]", rule) and rule.rstrip().endswith("."), name


@pytest.mark.parametrize("arguments", [("check", "rules", ALERTS), ("test", "rules", ROOT / "tests/alerts_test.yaml")])
def test_promtool_accepts_the_alerts(arguments: tuple[str | Path, ...]) -> None:
    require(shutil.which("promtool"), "promtool (Debian package prometheus)")

    result = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


def test_promtool_finds_nothing_wrong_with_the_metrics(start_hub: StartHub) -> None:
    require(shutil.which("promtool"), "promtool (Debian package prometheus)")
    hub = start_hub()
    hub.emit(data="x")
    text = httpx.get(f"{hub.control_url}/metrics").raise_for_status().text

    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


class Prometheus:
    """A Prometheus that scrapes `targets` as docs/monitoring.md says, but every half second.

    It looks at the alerts every second.
    """

    def __init__(self, folder: Path, targets: list[str]) -> None:
        page = (ROOT / "docs" / "monitoring.md").read_text()
        found = re.search(r"^```yaml\n(rule_files.*?)^```$", page, re.MULTILINE | re.DOTALL)
        assert found, "docs/monitoring.md has no configuration of Prometheus"
        key = folder / "ssehub.key"
        key.write_text(CONTROL_KEY)
        configuration = f"global: {{evaluation_interval: 1s}}\n{found[1]}"
        for printed, used in (
            ("alerts.yaml", str(ALERTS)),
            ("15s", "500ms"),
            ("/etc/prometheus/ssehub.key", str(key)),
            ('["10.0.0.1:8001", "10.0.0.2:8001"]', json.dumps(targets)),
        ):
            assert printed in configuration
            configuration = configuration.replace(printed, used)
        file = folder / "prometheus.yml"
        file.write_text(configuration)
        address = f"127.0.0.1:{free_port()}"
        self._http = httpx.Client(base_url=f"http://{address}/api/v1", timeout=30)
        self._log = (folder / "prometheus.log").open("w+")
        self.process = subprocess.Popen(
            [
                "prometheus",
                *(f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
                f"--web.listen-address={address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._http.close()
        self._log.close()

    def query(self, text: str) -> list[dict[str, Any]]:
        """Return the samples that answer a query, none while Prometheus starts."""
        try:
            response = self._http.get("/query", params={"query": text})
        except httpx.TransportError:
            assert self.process.poll() is None, Path(self._log.name).read_text()
            return []
        if response.status_code == 503:  # it starts
            return []
        assert response.status_code == 200, f"{text}: {response.text}"
        found: list[dict[str, Any]] = response.json()["data"]["result"]
        return found

    def value(self, text: str) -> float | None:
        """Return the value of a query that has one sample, None if it has none yet."""
        found = self.query(text)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._http.get("/rules").raise_for_status().json()["data"]["groups"][0]["rules"]
        return found


def test_prometheus_scrapes_workers_and_another_node_as_documented(
    start_hub: StartHub, valkey: RedisServer, tmp_path: Path
) -> None:
    require(shutil.which("prometheus"), "prometheus")
    env: dict[str, str | None] = {"SSEHUB_CONTROL_KEY": CONTROL_KEY}
    workers = start_hub("--broker", valkey.url, "--workers", "2", env=env)
    node = start_hub("--broker", valkey.url, env=env)
    targets = [f"127.0.0.1:{hub.control_port}" for hub in (workers, node)]
    fields = {"userId": "*", "channel": "chat", "data": "x"}
    asked = {"userId": "alex", "channel": "chat"}
    token = httpx.post(f"{node.control_url}/token/", data=asked, headers=KEY).raise_for_status().text
    with httpx.stream("GET", f"{node.url}/events/", params={"token": token}):
        httpx.post(f"{workers.control_url}/emit/", data=fields, headers=KEY).raise_for_status()
        assert httpx.post(f"{node.control_url}/emit/", data=fields).status_code == 401
        prometheus = Prometheus(tmp_path, targets)
        try:
            wait_until(lambda: prometheus.value("sum(up)") == 2, 60)
            wait_until(lambda: prometheus.value("count(ssehub_build_info)") == 3, 30)

            assert prometheus.value("sum(ssehub_subscribers)") == 1
            assert prometheus.value(f'sum(ssehub_events_published_total{{instance="{targets[0]}"}})') == 1
            assert prometheus.value(f'ssehub_delivery_seconds_count{{instance="{targets[1]}"}}') == 1
            assert prometheus.value('ssehub_control_responses_total{status="401"}') == 1
            started = prometheus.query(f'process_start_time_seconds{{instance="{targets[0]}"}}')
            assert [sample["metric"]["worker"] for sample in started] == ["0", "1"]
            for _, query in dashboard_queries():
                shown = query.replace("$__rate_interval", "5s").replace("$job", "ssehub").replace("$instance", ".+")
                prometheus.query(shown)
            wait_until(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), 90)
            assert [rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"] == []
        finally:
            prometheus.stop()
