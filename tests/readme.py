"""The curl commands of the README, run against a hub."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from conftest import HubProcess

README = Path(__file__).parent.parent / "README.md"


def check_curl_lines(hub: HubProcess) -> None:
    """Run the commands with the ports of `hub`. At the end `hub` is stopped, which ends the stream and so curl."""
    lines = re.findall(r"^    ((?:TOKEN=|curl ).*)$", README.read_text(), re.MULTILINE)
    ports = {"127.0.0.1:8000": f"127.0.0.1:{hub.port}", "127.0.0.1:8001": f"127.0.0.1:{hub.control_port}"}
    token, listen, emit = (re.sub("|".join(ports), lambda found: ports[found[0]], line) for line in lines)
    listener = subprocess.Popen(["bash", "-c", f"{token}\nexec {listen}"], stdout=subprocess.PIPE, text=True)
    hub.wait_for("ssehub_subscribers", 1)

    emitted = subprocess.run(["bash", "-c", emit], capture_output=True, text=True, timeout=20)
    hub.signal()
    received, _ = listener.communicate(timeout=20)

    assert emitted.stdout == "OK"
    assert "data: hello\n" in received and "event: stream-drain\n" in received
