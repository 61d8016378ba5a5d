"""A server without a hub, for the workload `reader`: writes prepared events to each connection at a fixed rate.

feeder.py CONNECTIONS EVENTS_PER_WRITE WRITES EVENTS_PER_SECOND prints its port, accepts that many connections, begins
to write when it reads a line from stdin, and ends after a second line.
"""

from __future__ import annotations

import socket
import sys
import time

from ssehub.bench.stamps import stamped

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT_BYTES = 100


def main() -> None:
    count, together, writes, rate = map(int, sys.argv[1:])
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        sys.stdout.write(str(server.getsockname()[1]))
        sys.stdout.flush()
        connections = [accepted(server) for _ in range(count)]
    sys.stdin.readline()
    began = time.monotonic()
    for write in range(writes):
        chunk = events(write * together, together)
        for connection in connections:
            connection.sendall(chunk)
        time.sleep(max(0.0, began + (write + 1) * together * count / rate - time.monotonic()))
    sys.stdin.readline()


def accepted(server: socket.socket) -> socket.socket:
    """Return the next connection, with its request read and the response's head sent."""
    connection = server.accept()[0]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65_536)
    connection.sendall(HEAD)
    return connection


def events(first: int, count: int) -> bytes:
    """Return a chunk of `count` events in the hub's encoding, numbered from `first`, due now."""
    now = time.monotonic_ns()
    frames = [
        f"data: {stamped(number, 0, now, EVENT_BYTES)}\nid: 1795600000000-{number}.k3j9x0ab\n\n"
        for number in range(first, first + count)
    ]
    body = "".join(frames).encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


if __name__ == "__main__":
    main()
