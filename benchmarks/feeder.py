"""A server without a hub, for the workload `reader`: events made beforehand, written to each connection at a pace.

feeder.py CONNECTIONS EVENTS_PER_WRITE WRITES EVENTS_PER_SECOND: says its port, takes that many connections, and writes
when a line comes.
"""

from __future__ import annotations

import socket
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PADDING = b"x" * 65


def events(first: int, count: int) -> bytes:
    """A chunk of events as the hub writes them, in the order of their numbers, stamped with the present."""
    now = time.monotonic_ns()
    lines = [
        b"id: 1795600000000-%d.k3j9x0ab\ndata: %010d.000.%019d.%b\n\n" % (number, number, now, PADDING)
        for number in range(first, first + count)
    ]
    body = b"".join(lines)
    return b"%x\r\n%b\r\n" % (len(body), body)


def accepted(server: socket.socket) -> socket.socket:
    connection = server.accept()[0]
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(65_536)
    connection.sendall(HEAD)
    return connection


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


if __name__ == "__main__":
    main()
