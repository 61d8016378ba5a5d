"""Many clients of two nodes, as a process of its own: `followers.py PORT PORT TOKEN COUNT`.

Half of the clients begin at each node. A client whose stream ends reconnects with its last event id: to the same node,
or to the other if that does not answer. Prints `ready` when all are connected, and what they have received, as JSON,
when each has received the event `end`.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

from ssehub.subscription import Message, MessageReader

END = re.compile(rb"\ndata: end\nid: [^\n]+\n\n")
LONGEST_END = 100


class Follower:
    def __init__(self, ports: list[int], token: str) -> None:
        self._ports = ports
        self._token = token
        self._reader = MessageReader()
        self.messages: list[Message] = []
        self.connections = 0
        self.is_done = False

    async def run(self) -> None:
        while not self.is_done:
            try:
                await self._listen(self._ports[0])
            except OSError:
                self._ports.reverse()
                await asyncio.sleep(0.02)

    async def _listen(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            cursor = f"Last-Event-ID: {self._reader.last_id}\r\n" if self._reader.last_id else ""
            writer.write(f"GET /events/?token={self._token} HTTP/1.0\r\nHost: 127.0.0.1\r\n{cursor}\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head:
                raise ConnectionError
            self.connections += 1
            await self._read(reader)
        except asyncio.IncompleteReadError:
            raise ConnectionError from None
        finally:
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Collect the bytes of the stream, and parse them only when it has ended: that costs less."""
        received: list[bytes] = []
        tail = b""
        try:
            while data := await reader.read(2**18):
                received.append(data)
                tail = tail[-LONGEST_END:] + data
                if END.search(tail):
                    self.is_done = True
                    return
        finally:
            text = b"".join(received)
            whole = text[: text.rfind(b"\n\n") + 2]
            self.messages += self._reader.read(whole.decode())

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(message.id, message.data) for message in self.messages if not message.type.startswith("stream-")]


async def main(ports: list[int], token: str, count: int) -> None:
    followers = [Follower(ports[:: -1 if number % 2 else 1], token) for number in range(count)]
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    while not all(follower.connections for follower in followers):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    write("ready")
    await asyncio.gather(*tasks)
    first = followers[0].events
    write(
        json.dumps(
            {
                "events": first,
                "different": sum(follower.events != first for follower in followers),
                "resets": sum(message.type == "stream-reset" for one in followers for message in one.messages),
                "connections": sum(follower.connections for follower in followers),
            }
        )
    )


def write(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


asyncio.run(main([int(sys.argv[1]), int(sys.argv[2])], sys.argv[3], int(sys.argv[4])))
