"""Listening sockets: Unix sockets, every interface, IPv6."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from conftest import SECRET, StartHub, connects, free_port
from ssehub.address import Address
from ssehub.errors import AddressError
from ssehub.server.sockets import listen, reserve
from ssehub.settings import TcpOptions


def test_unix_sockets_serve_both_apps_and_are_removed_at_the_end(tmp_path: Path, start_hub: StartHub) -> None:
    client, control = tmp_path / "client.sock", tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(client))

    hub = start_hub("--bind", f"unix:{client}", "--control-bind", f"unix:{control}")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(control))) as http:
        token = http.post("http://localhost/token/", data={"userId": "a", "channel": "b"}).text
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(client))) as http:
        status = http.head("http://x/events/", params={"token": token}).status_code
    modes = [oct(path.stat().st_mode)[-3:] for path in (client, control)]
    second = subprocess.run(
        [sys.executable, "-m", "ssehub", "--bind", f"unix:{client}", "--control-bind", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        env={**os.environ, "SSEHUB_SECRET": SECRET},
        timeout=20,
    )
    hub.signal()

    assert status == 200
    assert modes == ["666", "660"]
    assert second.returncode == 3 and "another process listens on this socket" in second.stderr
    assert hub.wait() == 0
    assert not client.exists() and not control.exists()


def test_every_interface_and_ipv6_can_be_bound(start_hub: StartHub) -> None:
    everywhere = start_hub("--bind", ":0")
    ipv6 = start_hub("--bind", "[::1]:0")

    assert everywhere.port and ipv6.url.startswith("http://[::1]:")
    assert httpx.get(f"{everywhere.url}/events/").status_code == 401
    assert httpx.get(f"{ipv6.url}/events/").status_code == 401


def test_reserved_port_answers_nobody_and_can_not_be_bound() -> None:
    address = Address("127.0.0.1", free_port())

    with reserve(address):
        is_answered = connects(address.port)
        with pytest.raises(AddressError, match="the port is in use"), listen(address, options=TcpOptions(), mode=0):
            pass

    assert not is_answered
    with listen(address, options=TcpOptions(), mode=0) as sock:
        assert sock.getsockname() == ("127.0.0.1", address.port)
