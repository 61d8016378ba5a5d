"""What TLS costs: workloads over TLS and without it in turn, and connections by kind of key and of handshake."""

from __future__ import annotations

import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from measuring import FEW_PAIRS, PAIRS, Bench, Figures, address_of, figures, in_turn, say, stream_request
from peers import Peer, Running, ssehub

PLAIN, TLS = "plain", "TLS"
LOADS = {
    "W1": ("--subscribers 1000 --events 1000", PAIRS),
    "W2": ("--subscribers 10000 --events 10 --rate 0.5 --processes 2", FEW_PAIRS),
    "L2": ("--subscribers 1000 --events 300 --rate 20", PAIRS),
}
"""In W2 less often than elsewhere: over TLS a round to all streams may take longer than half a second."""
OPENINGS = {
    "M": ("--subscribers 10000 --events 0 --processes 2", FEW_PAIRS),
    "C": ("--subscribers 5000 --users 5000 --events 0", FEW_PAIRS),
}
FIGURES_OF = {
    "W1": ("deliveries",),
    "W2": ("deliveries", "p50", "p99"),
    "L2": ("deliveries", "p50", "p99"),
    "M": ("bytes",),
    "C": ("connections",),
}
CONNECTIONS = 1_000
KEYS = {
    "P-256": ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
    "RSA 2048": ("-newkey", "rsa:2048"),
}
"""Options of `openssl req`."""


def run_tls(bench: Bench, pairs: int | None) -> Figures:
    """Return the figures of each workload without TLS and with it."""
    with tempfile.TemporaryDirectory() as folder:
        return _with_and_without(LOADS, tls_peer(Path(folder), "P-256"), bench, pairs)


def run_handshakes(bench: Bench, pairs: int | None) -> Figures:
    """Return what opening streams costs without TLS and with it, and with each kind of key and of handshake."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peers = {PLAIN: ssehub(), **{key: tls_peer(Path(folder), key) for key in KEYS}}
        found = _with_and_without(OPENINGS, peers["P-256"], bench, pairs)
        servers = {name: stack.enter_context(peer()) for name, peer in peers.items()}
        for _ in range(min(pairs or PAIRS, PAIRS)):
            for name, server in servers.items():
                for is_resumed in (False, True) if server.ca else (False,):
                    what = f"{name}{', resumed' if is_resumed else ''}: connections"
                    found.setdefault(what, []).append(connections_per_cpu_second(server, is_resumed=is_resumed))
                    say(f"  {what} {found[what][-1]:,.0f}")
    return found


def _with_and_without(loads: Mapping[str, tuple[str, int]], peer: Peer, bench: Bench, pairs: int | None) -> Figures:
    found: Figures = {}
    for name, (arguments, most) in loads.items():
        peers = {f"{name}, {PLAIN}": ssehub(), f"{name}, {TLS}": peer}

        def one_run(
            each: str, name: str = name, arguments: str = arguments, peers: Mapping[str, Peer] = peers
        ) -> dict[str, float]:
            with peers[each]() as server:
                return figures(bench.ssehub_bench(each, server, arguments), FIGURES_OF[name])

        found |= in_turn(list(peers), one_run, most, pairs)
    return found


def tls_peer(folder: Path, key: str) -> Peer:
    """Return the hub with TLS on both ports, by a certificate of its own that has this kind of key."""
    name = key.replace(" ", "-")
    certificate, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    subject = ("-subj", "/CN=benchmark", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", "-x509", *KEYS[key], "-nodes", "-days", "2", *subject]
    subprocess.run([*command, "-keyout", key_file, "-out", certificate], check=True, capture_output=True)
    files = {"cert_file": certificate, "key_file": key_file}
    env = {f"SSEHUB_{port}TLS_{what.upper()}": str(path) for port in ("", "CONTROL_") for what, path in files.items()}

    @contextmanager
    def peer() -> Iterator[Running]:
        with ssehub(env=env)() as server:
            yield replace(server, ca=certificate)

    return peer


def connections_per_cpu_second(server: Running, *, is_resumed: bool) -> float:
    """Open one stream after the other, each until its first frame, and return how many the server opens.

    With `is_resumed`, each handshake resumes the session of the one before, as browsers do.
    """
    context = ssl.create_default_context(cafile=str(server.ca)) if server.ca else None
    session = None
    request = stream_request("newcomer", "elsewhere")
    before = server.usage().cpu_seconds
    for number in range(CONNECTIONS):
        with ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection(address_of(server), 5))
            if context is not None:
                sock = encrypted = stack.enter_context(
                    context.wrap_socket(sock, server_hostname="127.0.0.1", session=session)
                )
                if session is not None and not encrypted.session_reused:
                    raise RuntimeError("the server does not resume sessions")
            sock.sendall(request)
            received = b""
            while b"stream-hello" not in received:
                received += sock.recv(4096)
            if is_resumed and not number % 100:
                session = encrypted.session  # the server's tickets have arrived with its response
    return CONNECTIONS / (server.usage().cpu_seconds - before)
