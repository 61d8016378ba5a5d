"""Appends to a run until it is told to stop: `python append.py LIBRARY PACE URL`. Prints the status and the body.

LIBRARY is `httpx`, `requests`, `aiohttp` or `curl`, which is given what to send on its standard input. PACE is `slow`,
a line every 20 ms, or `fast`, as many as the connection takes. After 15 s it gives up.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

LINE = b'{"data":"a word and another "}\n'
NDJSON = {"Content-Type": "application/x-ndjson"}
SECONDS = 15.0


def lines(pace: str) -> Iterator[bytes]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        yield LINE if pace == "slow" else LINE * 500
        if pace == "slow":
            time.sleep(0.02)
    raise SystemExit("nobody has told it to stop")


async def lines_async(pace: str) -> AsyncIterator[bytes]:
    for part in lines("fast"):
        yield LINE if pace == "slow" else part
        await asyncio.sleep(0.02 if pace == "slow" else 0)


def with_httpx(pace: str, url: str) -> tuple[int, str]:
    import httpx

    response = httpx.post(url, content=lines(pace), headers=NDJSON)
    return response.status_code, response.text


def with_requests(pace: str, url: str) -> tuple[int, str]:
    import requests

    response = requests.post(url, data=lines(pace), headers=NDJSON)
    return response.status_code, response.text


def with_aiohttp(pace: str, url: str) -> tuple[int, str]:
    import aiohttp  # type: ignore[import-not-found]  # of the environment of tests/clients

    async def post() -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=lines_async(pace), headers=NDJSON) as response,
        ):
            return response.status, await response.text()

    return asyncio.run(post())


def with_curl(pace: str, url: str) -> tuple[int, str]:
    command = ["curl", "--silent", "--request", "POST", "--header", "Content-Type: application/x-ndjson"]
    command += ["--upload-file", "-", "--write-out", "\n%{http_code}", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            for part in lines(pace):
                process.stdin.write(part)
                if process.poll() is not None:
                    break
        except BrokenPipeError:
            pass
        body, _, status = process.stdout.read().decode().rpartition("\n")
    return int(status), body


if __name__ == "__main__":
    status, body = globals()[f"with_{sys.argv[1]}"](*sys.argv[2:])
    sys.stdout.write(f"{status} {body}\n")
