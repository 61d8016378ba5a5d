"""Many clients that disconnect about every 200 ms and reconnect: `kicked.py PORT TOKEN COUNT SECONDS`.

Prints `ready` when each client has received an id. After SECONDS the clients stay connected. When each has received the
event "end", prints the sums of their counters as JSON and exits.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

from ssehub.subscription import MessageReader


class Client:
    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._reader = MessageReader()
        self._next = 0
        self.wrong = 0
        """Number of events that were not the next one."""
        self.resets = self.received = self.connections = 0
        self.is_done = False

    @property
    def last_id(self) -> str:
        return self._reader.last_id

    async def run(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while not self.is_done:
            disconnects = asyncio.get_running_loop().time() < end
            try:
                async with asyncio.timeout(random.uniform(0.15, 0.25) if disconnects else 30):
                    await self._listen()
            except (TimeoutError, OSError):
                pass

    async def _listen(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.connections += 1
        try:
            last = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id else ""
            request = f"GET /events/?token={self._token} HTTP/1.0\r\nHost: 127.0.0.1\r\n{last}\r\n"
            writer.write(request.encode())
            await reader.readuntil(b"\r\n\r\n")
            while not self.is_done:
                self._receive(await reader.readuntil(b"\n\n"))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.transport.abort()

    def _receive(self, frame: bytes) -> None:
        for message in self._reader.read(frame.decode()):
            if message.data == "end":
                self.is_done = True
            elif message.type.startswith("stream-"):
                self.resets += 1
            else:
                self.wrong += int(message.data) != self._next
                self._next = int(message.data) + 1
                self.received += 1


async def main(port: int, token: str, count: int, seconds: float) -> None:
    clients = [Client(port, token) for _ in range(count)]
    tasks = [asyncio.create_task(client.run(seconds)) for client in clients]
    while not all(client.last_id for client in clients):  # noqa: ASYNC110  # there is no event to wait for
        await asyncio.sleep(0.01)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.gather(*tasks)
    names = ("wrong", "resets", "received", "connections")
    sys.stdout.write(json.dumps({name: sum(getattr(client, name) for client in clients) for name in names}))


asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
