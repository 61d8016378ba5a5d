"""examples/cluster: two nodes with Valkey, used through HAProxy, and the compose file for the same in containers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest
from playwright.sync_api import Page

from conftest import require, wait_until
from node import NODE, NODE_MODULES, RECONNECT
from streams import RawStream, get

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "cluster"
DRAIN_SECONDS = 2
LISTEN_IN_PAGE = """([url, name]) => {
  const received = (window.received = window.received || {})[name] = [];
  const source = new EventSource(url);
  source.onopen = () => window.opened = (window.opened || 0) + 1;
  source.onmessage = event => received.push(event.data);
  source.addEventListener("stream-reset", event => received.push("reset " + event.data));
  source.onerror = () => source.readyState == EventSource.CLOSED && received.push("stopped for good");
}"""


def seven_free_ports() -> int:
    """Return the first of seven free ports in a row.

    They are below the ports of outgoing connections, which could otherwise use one while its node restarts, and below
    those of `free_port`.
    """
    while True:
        first = random.randrange(15_000, 19_990)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 7):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


class RunningCluster:
    """`python examples/cluster` in a process of its own."""

    def __init__(self, log: Path) -> None:
        self.port = seven_free_ports()
        self.url = f"http://127.0.0.1:{self.port}"
        self.control_url = f"http://127.0.0.1:{self.port + 1}"
        self.node_control_urls = [f"http://127.0.0.1:{self.port + offset}" for offset in (4, 6)]
        self._log = log
        env = {"SSEHUB_DRAIN_SECONDS": f"{DRAIN_SECONDS}", "SSEHUB_BROKER_PROBE_SECONDS": "1", **os.environ}
        command = [sys.executable, str(EXAMPLE), "--port", f"{self.port}"]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=env)
        self.wait_for_line("kill -HUP", 60)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_line(self, text: str, seconds: float) -> None:
        wait_until(lambda: text in self.log or self.process.poll() is not None, seconds)
        assert text in self.log, self.log[-3_000:]

    def stream_url(self, user_id: str) -> str:
        token = httpx.post(f"{self.control_url}/token/", data={"userId": user_id, "channel": "chat"}, timeout=10)
        return f"{self.url}/events/?token={token.raise_for_status().text}"

    def subscribers(self) -> list[int]:
        texts = [httpx.get(f"{url}/metrics", timeout=10).text for url in self.node_control_urls]
        found = [re.search(r"^ssehub_subscribers (\S+)$", text, re.MULTILINE) for text in texts]
        return [int(float(one[1])) for one in found if one is not None]

    def publish(self, data: str) -> httpx.Response:
        form = {"userId": "*", "channel": "chat", "data": data}
        return httpx.post(f"{self.control_url}/emit/", data=form)

    def listen(self, user_id: str) -> RawStream:
        stream = RawStream(self.port, get(self.stream_url(user_id).removeprefix(self.url)))
        stream.read_until(b"stream-hello")
        return stream

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RunningCluster]:
    require(shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin"), "haproxy")
    running = RunningCluster(tmp_path / "log")
    yield running
    if running.process.poll() is None:
        running.stop()


class Publisher(threading.Thread):
    """Publishes 0, 1, 2 … through HAProxy on one connection, and stops at the first answer that is not 200."""

    def __init__(self, control_url: str) -> None:
        super().__init__(daemon=True)
        self._url = f"{control_url}/emit/"
        self._is_over = threading.Event()
        self.numbers: list[str] = []
        self.failures: list[str] = []

    def run(self) -> None:
        with httpx.Client(timeout=30) as http:
            while not self._is_over.wait(0.01):
                event = {"userId": "*", "channel": "chat", "data": f"{len(self.numbers)}"}
                try:
                    http.post(self._url, json=event).raise_for_status()
                except httpx.HTTPError as exc:
                    self.failures.append(repr(exc))
                    return
                self.numbers.append(event["data"])

    def stop(self) -> None:
        self._is_over.set()
        self.join(60)


@contextlib.contextmanager
def npm_eventsource(url: str) -> Iterator[Callable[[], list[str]]]:
    """Listen with the npm package; yield a function that returns what it has received so far."""
    with tempfile.NamedTemporaryFile("w") as output:
        process = subprocess.Popen([NODE, RECONNECT, url], stdout=output, start_new_session=True)

        def received() -> list[str]:
            text = Path(output.name).read_text()  # opened again, as Node shares the file offset of `output`
            return [json.loads(line) for line in text.split("\n")[:-1]]

        try:
            yield received
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # NODE is a Python script, which starts the real Node
            process.wait()


@pytest.mark.e2e
def test_both_nodes_deliver_what_is_published_through_haproxy(cluster: RunningCluster) -> None:
    streams = [cluster.listen(name) for name in ("a", "b")]
    each = cluster.subscribers()

    cluster.publish("hi").raise_for_status()
    for stream in streams:
        stream.read_event("hi")
        stream.close()

    assert each == [1, 1]
    wait_until(lambda: cluster.subscribers() == [0, 0], 5)  # long before the next heartbeat
    assert cluster.stop() == 0
    assert "Traceback" not in cluster.log


@pytest.mark.e2e
def test_while_no_node_is_ready_clients_are_told_to_reconnect(cluster: RunningCluster) -> None:
    url = cluster.stream_url("alex")
    valkey = next(
        child
        for child in psutil.Process(cluster.process.pid).children()
        if child.name() != "haproxy" and "server" in child.name()
    )
    stream = cluster.listen("alex")

    valkey.suspend()
    try:
        wait_until(lambda: all(f"streams/{node} is DOWN" in cluster.log for node in "ab"), 20)
        answer = httpx.get(url, headers={"Origin": "https://app.example"}, timeout=10)
        refused = cluster.publish("lost")
    finally:
        valkey.resume()
    wait_until(lambda: httpx.get(f"{cluster.control_url}/all-nodes-ready").status_code == 200, 20)
    cluster.publish("hi").raise_for_status()
    stream.read_event("hi")
    stream.close()

    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert re.fullmatch(r"event: stream-busy\ndata: {}\nretry: [2-6]\d{3}\n\n", answer.text)
    assert refused.status_code == 503


@pytest.mark.e2e
def test_e15_a_rolling_restart_loses_nothing_and_refuses_no_publisher(cluster: RunningCluster, page: Page) -> None:
    require(NODE_MODULES.exists(), "the npm package eventsource")
    page.goto(f"{cluster.url}/")  # any page of that origin
    publisher = Publisher(cluster.control_url)
    with contextlib.ExitStack() as stack:
        stack.callback(publisher.stop)
        npm = [stack.enter_context(npm_eventsource(cluster.stream_url(f"npm {number}"))) for number in range(2)]
        for name in ("one", "two"):
            page.evaluate(LISTEN_IN_PAGE, [cluster.stream_url(name), name])
        wait_until(lambda: cluster.subscribers() == [2, 2], 20)

        publisher.start()
        cluster.process.send_signal(signal.SIGHUP)
        cluster.wait_for_line("both nodes have been restarted", 90)
        time.sleep(0.5)  # and a while with both nodes
        publisher.stop()

        def received() -> list[list[str]]:
            return [*page.evaluate("Object.values(window.received)"), *(of_client() for of_client in npm)]

        with contextlib.suppress(AssertionError):  # the assertions below show better what is missing
            wait_until(lambda: all(len(numbers) >= len(publisher.numbers) for numbers in received()), 60)

        assert publisher.failures == []
        assert len(publisher.numbers) > 100
        assert received() == [publisher.numbers] * 4
    assert page.evaluate("window.opened") >= 4  # each page has reconnected


def test_without_the_package_redis_the_cluster_says_how_to_install_it() -> None:
    # Without site-packages there is no redis.
    cluster = subprocess.run([sys.executable, "-I", "-S", str(EXAMPLE)], capture_output=True, text=True, timeout=20)

    assert cluster.returncode == 1
    assert cluster.stderr.strip() == (
        f"cluster: the nodes need the package redis: run {sys.executable} -m pip install 'redis[hiredis]'"
    )


# The compose file, which is only read: the tests have no container engine.


def read_compose(lines: list[str]) -> dict[str, Any]:
    """Parse the part of YAML that compose.yaml uses: mappings by indentation, with values in JSON or plain words."""
    found: dict[str, Any] = {}
    levels = [(-1, found)]
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indent = len(line) - len(line.lstrip())
        matched = re.fullmatch(r"([\w-]+):(?: (.+))?", line.strip())
        assert matched, f"read_compose can't parse this line of compose.yaml: {line}"
        key, value = matched.groups()
        while levels[-1][0] >= indent:
            levels.pop()
        if value is None:
            levels[-1][1][key] = {}
            levels.append((indent, levels[-1][1][key]))
        else:
            levels[-1][1][key] = json.loads(value) if value[0] in '"[{' else value
    return found


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster_example", EXAMPLE / "__main__.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    services: dict[str, dict[str, Any]] = read_compose((EXAMPLE / "compose.yaml").read_text().splitlines())["services"]
    return services


def test_containers_run_the_same_commands_as_the_script(
    script: ModuleType, services: dict[str, dict[str, Any]]
) -> None:
    valkey = ["valkey-server", *script.valkey_arguments(6379)]
    node = script.node_arguments(":8000", ":8001", "redis://valkey:6379")
    haproxy = ["haproxy", *script.haproxy_arguments("/etc/haproxy/haproxy.cfg")]

    assert services["valkey"]["command"] == [part.replace("127.0.0.1", "0.0.0.0") for part in valkey]
    assert services["node-a"] == services["node-b"]
    assert services["node-a"]["command"] == node
    assert services["haproxy"]["command"] == haproxy
    assert services["haproxy"]["volumes"] == ["./haproxy.cfg:/etc/haproxy/haproxy.cfg:ro"]
    assert services["haproxy"]["ports"] == ["8000:8000", "127.0.0.1:8001:8001"]
    assert services["haproxy"]["image"].startswith("haproxy:") and services["valkey"]["image"].startswith("valkey/")
    for service in services.values():
        assert set(service.get("depends_on", [])) <= services.keys()


def test_addresses_of_haproxy_are_those_on_which_containers_listen(services: dict[str, dict[str, Any]]) -> None:
    addresses = services["haproxy"]["environment"]
    names = set(re.findall(r"\$\{(\w+)-", (EXAMPLE / "haproxy.cfg").read_text()))
    assert addresses.keys() == names

    for name in names - {"STREAMS", "CONTROL"}:
        host, port = addresses[name].split(":")
        option = "--control-bind" if name.endswith("CONTROL") else "--bind"
        command = services[host]["command"]
        assert command[command.index(option) + 1] == f":{port}"


def test_image_is_built_from_this_repository_and_checks_the_control_port(services: dict[str, dict[str, Any]]) -> None:
    build = services["node-a"]["build"]
    dockerfile = (EXAMPLE / build["context"] / build["dockerfile"]).read_text()

    assert (EXAMPLE / build["context"]).resolve() == EXAMPLE.parent.parent
    assert 'ENTRYPOINT ["ssehub"]' in dockerfile
    assert "EXPOSE 8000 8001" in dockerfile
    assert "http://127.0.0.1:8001/healthz" in dockerfile
    assert {"SSEHUB_SECRET", "SSEHUB_CONTROL_KEY"} == services["node-a"]["environment"].keys()


def copied_by(dockerfile: str) -> list[str]:
    """Return the files and folders of the repository that an image gets."""
    copies = re.findall(r"^COPY (.*) \S+$", dockerfile, re.MULTILINE)
    return [path for copy in copies for path in copy.split()]


def test_image_has_what_the_package_is_built_from_and_nothing_else(tmp_path: Path) -> None:
    copied = copied_by((EXAMPLE / "Dockerfile").read_text())
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for path in copied:
        copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
        copy(ROOT / path, tmp_path / path)

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, timeout=60)

    assert copied == kept == ["pyproject.toml", "README.md", "LICENSE", "src"]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    files = {Path(name).name for name in zipfile.ZipFile(wheel).namelist()}
    assert {"hub.py", "hello.html", "runs.lua", "py.typed", "entry_points.txt"} <= files


@pytest.mark.parametrize("key", [None, "the control key of this container"])
def test_image_listens_on_all_interfaces_and_only_with_a_control_key(key: str | None, tmp_path: Path) -> None:
    found = re.search(r"^ENV (.*)$", (EXAMPLE / "Dockerfile").read_text(), re.MULTILINE)
    assert found
    names = {
        name: bind.replace(":8000", ":0").replace(":8001", ":0") for name, bind in re.findall(r"(\w+)=(\S+)", found[1])
    }
    env = {**os.environ, **names, "SSEHUB_SECRET": "s3cret of this container, 32 bytes"}
    log = tmp_path / "log"
    with log.open("w") as file:
        hub = subprocess.Popen(
            [sys.executable, "-m", "ssehub"], env=env | ({"SSEHUB_CONTROL_KEY": key} if key else {}), stderr=file
        )
    try:
        wait_until(lambda: hub.poll() is not None or "listening for publishers" in log.read_text(), 20)
    finally:
        hub.terminate()
        hub.wait(20)

    if key:
        assert "bind :0 accepts connections from other machines" in log.read_text()
    else:
        assert hub.returncode == 2
        assert "control key" in log.read_text()
