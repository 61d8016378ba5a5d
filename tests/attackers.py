"""Clients that mean harm, of ten kinds: `python attackers.py CLIENT_PORT CONTROL_PORT TOKEN EACH SECONDS`.

EACH clients of every kind attack for SECONDS, in one event loop. Then it prints how often each kind has connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import uvloop

PART = b"x" * 65_536
Attack = Callable[["Target"], Awaitable[None]]


class Target:
    """Where to attack, until when."""

    def __init__(self, client_port: int, control_port: int, token: str, seconds: float) -> None:
        self.client_port = client_port
        self.control_port = control_port
        self.token = token
        self.end = time.monotonic() + seconds

    def is_over(self) -> bool:
        return time.monotonic() >= self.end

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, min(seconds, self.end - time.monotonic())))


class Client:
    """One connection. Sending waits until the kernel has taken the bytes, or raises OSError."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> Client:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def read(self, size: int = 65_536) -> bytes:
        return await self._loop.sock_recv(self.sock, size)

    async def is_open(self, seconds: float) -> bool:
        """Wait; return False as soon as the server has closed the connection."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self.read():
                    pass
                return False
        return True


def stream_request(target: Target) -> bytes:
    return f"GET /events/?token={target.token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def silent(target: Target, client: Client) -> None:
    while not target.is_over() and await client.is_open(1):
        pass


async def slowloris(target: Target, client: Client) -> None:
    await client.send(b"GET /events/ HTTP/1.1\r\nX: ")
    while not target.is_over() and await client.is_open(1):
        await client.send(b"y")


async def endless_head(target: Target, client: Client) -> None:
    await client.send(b"GET /events/ HTTP/1.1\r\nHost: x\r\nX: ")
    while not target.is_over():
        await client.send(PART)


async def pipelining(target: Target, client: Client) -> None:
    while not target.is_over():
        await client.send(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1_000)


async def slow_reader(target: Target, client: Client) -> None:
    await client.send(stream_request(target))
    while not target.is_over() and await client.read(100):
        await target.pause(1)


async def never_reader(target: Target, client: Client) -> None:
    await client.send(stream_request(target))
    await target.pause(10)


async def garbage(target: Target, client: Client) -> None:
    await client.send(os.urandom(200))
    await client.is_open(1)


async def bad_token(target: Target, client: Client) -> None:
    while not target.is_over():
        token = target.token[:-4] + "".join(random.choices("abcdefghijklmnop", k=4))
        await client.send(f"GET /events/?token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if not await client.read():
            return


async def connect_and_reset(target: Target, client: Client) -> None:
    await client.send(stream_request(target))
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await target.pause(0.01)


async def huge_body(target: Target, client: Client) -> None:
    lines = ("POST /emit/ HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 1000000000")
    await client.send("\r\n".join([*lines, "", ""]).encode())
    while not target.is_over():
        await client.send(PART)


ON_CLIENT_PORT = (
    silent,
    slowloris,
    endless_head,
    pipelining,
    slow_reader,
    never_reader,
    garbage,
    bad_token,
    connect_and_reset,
)
ON_CONTROL_PORT = (huge_body,)


async def attack(kind: Callable[[Target, Client], Awaitable[None]], target: Target, counts: Counter[str]) -> None:
    """Attack again and again, with a short pause after each connection that the server has closed."""
    port = target.control_port if kind in ON_CONTROL_PORT else target.client_port
    while not target.is_over():
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(max(0.1, target.end - time.monotonic())):
                client = await Client.connect(port, receive_buffer=4_096 if "reader" in kind.__name__ else None)
                counts[kind.__name__] += 1
                with contextlib.closing(client.sock):
                    await kind(target, client)
        await target.pause(0.1)


async def main(target: Target, each: int) -> None:
    counts: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:
        for kind, _ in itertools.product((*ON_CLIENT_PORT, *ON_CONTROL_PORT), range(each)):
            group.create_task(attack(kind, target, counts))
    sys.stdout.write(f"{dict(counts)}\n")


if __name__ == "__main__":
    client_port, control_port, token, each, seconds = sys.argv[1:]
    uvloop.run(main(Target(int(client_port), int(control_port), token, float(seconds)), int(each)))
