"""Ctrl-C in the main thread of a program that produces a run from there: nothing hangs, and the run ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
import pytest

from conftest import RunningHub
from proxy import Mode, Proxy

EXIT_SECONDS = 20.0


IN_PROCESS = """
import asyncio, sys, threading, time
from ssehub import Hub
from ssehub.runs.store import RunFilter

hub = Hub()
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()

def call(work):
    return asyncio.run_coroutine_threadsafe(work, loop).result(10)

async def states():
    return [(run.name, run.state.value, run.error) for run in await hub.runs.list_runs(RunFilter())]

call(hub.start())
if sys.argv[1] == "entering":
    loop.call_soon_threadsafe(time.sleep, 2.0)
try:
    print("ready", flush=True)
    with hub.run_sync("job", channel="chat", user_id="alex") as run:
        run.append(data="one")
        time.sleep(30)
    print("not interrupted")
except KeyboardInterrupt:
    print("interrupted")
time.sleep(0.5)
print(call(states()))
call(hub.aclose())
loop.call_soon_threadsafe(loop.stop)
thread.join(5)
print(threading.active_count())
"""
OVER_HTTP = """
import sys, time
from ssehub import Publisher

with Publisher(sys.argv[1]) as publisher:
    print("ready", flush=True)
    with publisher.run("job", channel="chat", user_id="alex") as run:
        run.append(data="one")
        time.sleep(30)
"""


def interrupt(script: str, *arguments: str, after_seconds: float) -> tuple[int, str, str]:
    """Run a program, and send it SIGINT some time after its first line. Return its exit code and its output."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(after_seconds)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=EXIT_SECONDS)
        finally:
            process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("where", "states"), [("inside", "[('job', 'failed', 'KeyboardInterrupt')]"), ("entering", "")]
)
def test_interrupted_thread_ends_its_run_in_the_hub_of_the_process(where: str, states: str) -> None:
    code, out, err = interrupt(IN_PROCESS, where, after_seconds=1.0)

    lines = out.splitlines()
    assert (lines[0], lines[2], code) == ("interrupted", "1", 0), err
    if states:
        assert lines[1] == states
    else:  # whether it was created before that is a matter of chance, but it does not stay open
        assert lines[1] in ("[]", "[('job', 'failed', 'cancelled')]")


def test_interrupted_publisher_ends_its_run(hub: RunningHub) -> None:
    _, _, err = interrupt(OVER_HTTP, hub.control_url, after_seconds=1.5)

    assert "KeyboardInterrupt" in err
    run = httpx.get(f"{hub.control_url}/runs/job").json()
    assert (run["state"], run["error"], run["events"]) == ("failed", "KeyboardInterrupt", 1)


def test_publisher_that_waits_for_a_silent_hub_can_be_interrupted(hub: RunningHub) -> None:
    with Proxy(hub.control_port) as proxy:
        proxy.mode = Mode.STALL
        _, _, err = interrupt(OVER_HTTP, f"http://127.0.0.1:{proxy.port}", after_seconds=1.5)

    assert "KeyboardInterrupt" in err
