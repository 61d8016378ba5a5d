"""The log on stderr: it blocks nothing, has one line per record, and shows no secret."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx

from conftest import SECRET, StartHub, free_port, wait_until
from streams import listen


def test_f10_hub_goes_on_when_nobody_reads_its_stderr() -> None:
    port, control_port = free_port(), free_port()
    control_url = f"http://127.0.0.1:{control_port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "ssehub", f"--bind=127.0.0.1:{port}", f"--control-bind=127.0.0.1:{control_port}"],
        stderr=subprocess.PIPE,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
    )
    with process:
        wait_until(lambda: is_healthy(control_url), 20)
        token = httpx.post(f"{control_url}/token/", data={"userId": "a", "channel": "c" * 200}).text

        for _ in range(500):  # a line of 300 bytes each: more than the 64 KiB of a pipe
            listen(port, token).close()
        health = httpx.get(f"{control_url}/healthz").text
        process.terminate()

        assert health == "ok\n"
        assert process.wait(20) == 0


def is_healthy(control_url: str) -> bool:
    try:
        return httpx.get(f"{control_url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False


def test_c16_names_cannot_break_a_log_line(start_hub: StartHub) -> None:
    hub = start_hub()
    user = "evil\x1b[31m\u2028\x85name"

    listen(hub.port, hub.token(user)).close()
    wait_until(lambda: "stream ended" in hub.log)

    line = next(line for line in hub.log.split("\n") if "stream ended" in line)
    assert "\x1b" not in hub.log and "\u2028" not in hub.log and "\x85" not in hub.log
    assert "evil" in line and line.endswith(" s")


def test_c17_no_token_is_in_the_log(start_hub: StartHub) -> None:
    hub = start_hub("--log-level", "debug")
    token = hub.token()

    listen(hub.port, token).close()
    httpx.get(f"{hub.url}/events/", params={"token": f"{token}x"})
    wait_until(lambda: "stream ended" in hub.log and "stream refused" in hub.log)

    assert token not in hub.log and SECRET not in hub.log
