"""Load on a deployment of two nodes: clients that follow both, publishers, and a comparison of what they have."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from redis_requests import fields
from redis_servers import SOAK

Ports = tuple[int, int]


class Followers:
    """`count` clients of two nodes, in a process of their own: see `followers.py`."""

    def __init__(self, ports: Ports, token: str, count: int) -> None:
        script = str(Path(__file__).parent / "followers.py")
        command = [sys.executable, script, *map(str, ports), token, str(count)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def result(self) -> dict[str, Any]:
        """Return what they have received, once each has received the event `end`."""
        out, _ = self._process.communicate(timeout=120 if SOAK else 30)
        result: dict[str, Any] = json.loads(out)
        return result

    def __enter__(self) -> Followers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Publishers:
    """Eight publishers to the control ports of two nodes, with `rate` events per second in total.

    Each publishes every second event until it is answered 200, with an idempotency key and at both nodes in turn. The
    others it publishes once.
    """

    def __init__(self, ports: Ports, rate: float) -> None:
        self._stop = threading.Event()
        self._rate = rate / 8
        arguments = [(name, ports[:: -1 if name % 2 else 1]) for name in range(8)]
        self._threads = [threading.Thread(target=self._publish, args=these) for these in arguments]
        self._began = time.monotonic()
        self.answered: list[tuple[str, str]] = []
        """The id and data of each event that was answered 200."""
        self.refused = 0
        self.seconds = 0.0

    def _publish(self, name: int, ports: Ports) -> None:
        began, sent = time.monotonic(), 0
        with httpx.Client(timeout=10) as http:
            while not self._stop.is_set():
                for port in itertools.cycle(ports) if sent % 2 else ports[:1]:
                    if self._is_answered(http, port, f"{name} {sent}") or self._stop.wait(0.02):
                        break
                sent += 1
                self._stop.wait(max(0.0, began + sent / self._rate - time.monotonic()))

    def _is_answered(self, http: httpx.Client, port: int, data: str) -> bool:
        try:
            answer = http.post(f"http://127.0.0.1:{port}/emit/", json=fields(data=data, idempotencyKey=data))
        except httpx.TransportError:
            self.refused += 1
            return False
        if answer.status_code != 200:
            self.refused += 1
            assert answer.status_code == 503, answer.text
            return False
        self.answered.append((answer.json()["id"], data))
        return True

    def __enter__(self) -> Publishers:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self._began

    def __str__(self) -> str:
        return f"{len(self.answered)} events answered and {self.refused} refused in {self.seconds:.1f} s"


def checked_result(followers: Followers, publishers: Publishers) -> dict[str, Any]:
    """Return what the followers have received: the same for all, no event twice, and everything that was answered."""
    result = followers.result()
    events = [(id, data) for id, data in result["events"]]
    assert result["different"] == 0
    assert len({data for _, data in events}) == len(events)
    assert set(publishers.answered) <= set(events)
    return result
