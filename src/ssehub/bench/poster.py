"""A publisher's connection to the control app."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..trust import tls_problem
from .addresses import address_of, parts_of
from .plan import BenchError, Plan

CONTENT_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded", "raw": "text/plain"}


class Poster:
    """Sends one POST after another on one connection.

    httpx needs about 17 times the CPU time for each of them, and would be the bottleneck of the load test.
    """

    def __init__(self, plan: Plan, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._url = plan.control_url
        parts = parts_of(plan.control_url)
        key = f"Authorization: Bearer {plan.control_key}\r\n" if plan.control_key else ""
        self._prefix = parts.path.rstrip("/")
        self._head = f"HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}"

    async def post(self, path: str, body: bytes, kind: str = "json") -> bytes:
        """Return the body of the response; raises BenchError unless its status is 2xx."""
        self._writer.write(
            f"POST {self._prefix}{path} {self._head}"
            f"Content-Type: {CONTENT_TYPES[kind]}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/"):
                raise ValueError
            answer = await self._read_body(head)
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise BenchError("the hub closed a publisher's connection without a response") from exc
        except (ValueError, asyncio.LimitOverrunError) as exc:
            raise BenchError(f"{self._url}: the response to {path} is not valid HTTP") from exc
        status = head.partition(b"\r\n")[0].split(b" ", 1)[-1].decode(errors="replace")
        if not status.startswith("2"):
            raise BenchError(f"the hub refused {path}: {status}: {' '.join(answer.decode(errors='replace').split())}")
        return answer

    async def _read_body(self, head: bytes) -> bytes:
        if length := re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE):
            return await self._reader.readexactly(int(length[1]))
        if not re.search(rb"\r\ntransfer-encoding: *chunked", head, re.IGNORECASE):
            return b""
        chunks = []
        while size := int((await self._reader.readuntil(b"\n")).partition(b";")[0], 16):
            chunks.append(await self._reader.readexactly(size))
            await self._reader.readuntil(b"\n")
        while (await self._reader.readuntil(b"\n")).strip():  # trailers
            pass
        return b"".join(chunks)


@asynccontextmanager
async def connected(plan: Plan) -> AsyncIterator[Poster]:
    """Connect to the control app for the length of the `with` block; raises BenchError if that fails."""
    address = address_of(plan.control_url)
    try:
        if address.path is not None:
            reader, writer = await asyncio.open_unix_connection(address.path)
        else:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    except OSError as exc:
        reason = tls_problem(exc) or exc.strerror or exc
        raise BenchError(f"cannot connect to {plan.control_url}: {reason}") from exc
    try:
        yield Poster(plan, reader, writer)
    finally:
        writer.close()


async def tokens_from_hub(plan: Plan) -> list[str]:
    """Request a token for each audience from the control app."""
    bodies = [json.dumps({"userId": user, "channel": channel}).encode() for channel, user in plan.audiences]
    async with connected(plan) as poster:
        try:
            async with asyncio.timeout(plan.patience_seconds):
                answers = [await poster.post("/token/", body) for body in bodies]
        except TimeoutError as exc:
            raise BenchError(f"{plan.control_url}: no token within {plan.patience_seconds:g} s") from exc
    try:
        return [str(json.loads(answer)["token"]) for answer in answers]
    except (ValueError, KeyError, TypeError) as exc:
        raise BenchError(f"{plan.control_url}: unexpected response to /token/: {answers[0][:80]!r}") from exc
