"""Run by test_faults.py in a network namespace of its own: takes the network away from an open stream.

It prints how long the hub has then taken to notice, in seconds.
"""

from __future__ import annotations

import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from certificates import CertificateAuthority
from conftest import RunningHub, wait_until
from streams import listen


def set_loopback(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True)


def main(kind: str, scheme: str, *options: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if scheme == "https":
            ca = CertificateAuthority(Path(folder))
            take_away(kind, ca.client_context(), *ca.issue().arguments, *options)
        else:
            take_away(kind, None, *options)


def take_away(kind: str, tls: ssl.SSLContext | None, *options: str) -> None:
    set_loopback("up")
    hub = RunningHub(*options)
    try:
        stream = listen(hub.port, hub.token(), receive_buffer=4_096 if kind == "busy" else None, tls=tls)
        if kind == "busy":
            hub.emit_batch([{"userId": "*", "channel": "chat", "data": "x" * 10_000}] * 20)
        set_loopback("down")
        begin = time.monotonic()
        wait_until(lambda: "bytes, disconnected" in hub.log, 30)
        sys.stdout.write(f"{time.monotonic() - begin}\n")
        stream.close()
    finally:
        set_loopback("up")
        hub.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
