"""Under somebody else's server, the lines, levels and handlers of the host's log are as they are without the hub."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from conftest import SECRET, free_port, wait_until
from servers import HYPERCORN, UVICORN, ServedHub, Server

_COMMAND = tuple(part for part in UVICORN.command if part != "--no-access-log")
HOSTS = {
    "uvicorn": replace(UVICORN, command=_COMMAND),
    "uvicorn-debug": replace(UVICORN, command=(*_COMMAND, "--log-level", "debug")),
    "uvicorn-warning": replace(UVICORN, command=(*_COMMAND, "--log-level", "warning")),
    "uvicorn-without-access-log": UVICORN,
    "uvicorn-with-our-protocol": replace(UVICORN, command=(*_COMMAND, "--http", "ssehub.server:HttpProtocol")),
}
PLAIN = """
from starlette.applications import Starlette

app = Starlette()
"""
MOUNTED = """
import logging
from contextlib import asynccontextmanager

from fastapi import FastAPI

from ssehub import Hub, Tokens
from ssehub.web.client import create_client_app

hub = Hub()
logging.basicConfig(level="WARNING", format="host %(levelname)s %(message)s")


@asynccontextmanager
async def lifespan(app):
    async with hub:
        logging.getLogger("host").warning("started")
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/sse", create_client_app(hub, tokens=Tokens(SECRET)))
"""
STATE = """
import asyncio, json, logging

def state():
    loggers = {"": logging.getLogger()}
    loggers.update(logging.root.manager.loggerDict)
    return {
        name: [logger.level, logger.propagate, logger.disabled, len(logger.handlers), len(logger.filters)]
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger) and not name.startswith("ssehub")
    }

import uvicorn
uvicorn.Config("x:y")  # configures uvicorn's loggers, as the command does
from ssehub.asgi import client_app

async def main():
    states = [state()]
    events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        return {"type": next(events)}

    async def send(message):
        states.append(state())

    await client_app({"type": "lifespan"}, receive, send)
    states.append(state())
    print(json.dumps(states))

asyncio.run(main())
"""


def lines_of_the_host(hub: ServedHub) -> list[str]:
    """Let the host serve a request and stop; return its lines without what differs between two of them."""
    try:
        wait_until(lambda: _is_served(hub) or hub.process.poll() is not None, 20)
        hub.signal(signal.SIGTERM)
        assert hub.wait() in (0, -signal.SIGTERM), hub.log
        lines = [line for line in hub.log.splitlines() if "ssehub." not in line]
    finally:
        hub.stop()
    return [re.sub(r"\d+", "N", line) for line in lines]


def _is_served(hub: ServedHub) -> bool:
    try:
        return httpx.get(f"{hub.url}/nothing").status_code == 404
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("server", HOSTS.values(), ids=HOSTS)
def test_lines_of_uvicorn_are_those_that_it_has_without_a_hub(server: Server, tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text(PLAIN)

    of_a_hub = lines_of_the_host(ServedHub(server))
    of_nothing = lines_of_the_host(ServedHub(server, "plain:app", cwd=tmp_path))

    assert of_a_hub == of_nothing
    if server.command[-1] != "warning":
        assert sum("Started server process" in line for line in of_a_hub) == 1
        assert any("Uvicorn running on" in line for line in of_a_hub)
    if server is HOSTS["uvicorn"]:
        assert any('"GET /nothing HTTP/N.N" N' in line for line in of_a_hub)


def test_lines_of_hypercorn_are_written_once() -> None:
    lines = lines_of_the_host(ServedHub(replace(HYPERCORN, command=(*HYPERCORN.command, "--access-logfile", "-"))))

    assert sum("Running on" in line for line in lines) == 1
    assert sum("GET /nothing" in line for line in lines) == 1


def test_log_that_a_host_has_configured_gets_the_lines_of_the_hub_mounted_in_it(tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(MOUNTED.replace("SECRET", repr(SECRET)))

    hub = ServedHub(HOSTS["uvicorn"], "host:app", cwd=tmp_path)
    lines = lines_of_the_host(hub)

    assert lines.count("host WARNING started") == 1
    assert sum("Uvicorn running on" in line for line in lines) == 1
    assert sum("GET /nothing" in line for line in lines) == 1


def test_no_logger_of_a_host_is_touched_by_the_app_and_its_control_server() -> None:
    control = f"127.0.0.1:{free_port()}"
    result = subprocess.run(
        [sys.executable, "-c", STATE],
        env={**os.environ, "SSEHUB_SECRET": SECRET, "SSEHUB_CONTROL_BIND": control},
        capture_output=True,
        text=True,
        timeout=30,
    )

    before, running, *after = json.loads(result.stdout)
    assert f"listening for publishers on http://{control}/" in result.stderr
    assert before[""] == [logging.WARNING, True, False, 0, 0]
    assert {name: running[name] for name in before} == before
    assert all({name: state[name] for name in before} == before for state in after)


def test_host_that_configures_its_log_late_gets_each_line_once() -> None:
    code = (
        "import logging\n"
        "from ssehub.server.logs import logging_to_stderr\n"
        "with logging_to_stderr('info', name='ssehub'):\n"
        "    logging.getLogger('ssehub.hub').info('first')\n"
        "    logging.basicConfig(level='INFO', format='host %(message)s')\n"
        "    logging.getLogger('ssehub.hub').info('second')\n"
        "    logging.getLogger('other').info('third')\n"
    )

    written = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stderr

    lines = [re.sub(r"^\d\S+ \S+ ", "", line) for line in written.splitlines()]
    assert sorted(lines) == ["INFO ssehub.hub: first", "host second", "host third"]
