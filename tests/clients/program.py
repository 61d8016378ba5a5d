"""A running client program, and what it has reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .catalogue import Client


@dataclass(frozen=True, slots=True)
class Message:
    """An event, as a library handed it to its application. None: the library does not say it."""

    type: str | None
    id: str | None
    data: str | None


class Program:
    """The process of a client. A thread reads what it writes."""

    def __init__(self, client: Client, url: str, types: str, *, line_bytes: int | None = None) -> None:
        self.messages: list[Message] = []
        self.errors: list[str] = []
        self.has_opened = False
        self.ended: str | None = None
        """Why the client has ended; None while it runs."""
        env = dict(os.environ)
        if line_bytes is not None:
            env["LINE_BYTES"] = str(line_bytes)
        self._changed = threading.Condition()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by __exit__
        self._process = subprocess.Popen(
            client.command(url, types),
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=env,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # so that its own children, such as a browser's, end with it
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def reports(self) -> tuple[str, ...]:
        """What it has said about its end and its errors, for people."""
        return (f"ended: {self.ended}", *(f"error: {error}" for error in self.errors[:5]))

    def wait(self, condition: Callable[[], object], seconds: float) -> bool:
        """Wait until `condition()` is true, the program has ended, or `seconds` have passed; return condition()."""
        end = time.monotonic() + seconds
        while not condition() and self.ended is None and time.monotonic() < end:
            with self._changed:
                self._changed.wait(0.05)
        return bool(condition())

    def has_heard(self, data: str) -> bool:
        return any(message.data == data for message in list(self.messages))

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as lines:
            for line in lines:
                self._note(json.loads(line))
        self._process.wait()
        with self._changed:
            if self.ended is None:
                self._stderr.seek(0)
                tail = self._stderr.read()[-500:]
                self.ended = f"exit code {self._process.returncode}: {tail}"
            self._changed.notify_all()

    def _note(self, line: dict[str, Any]) -> None:
        with self._changed:
            if "data" in line:
                self.messages.append(Message(line["type"], line["id"], line["data"]))
            elif "open" in line:
                self.has_opened = True
            elif "error" in line:
                self.errors.append(line["error"])
            elif "ended" in line:
                self.ended = line["ended"]
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join(10)
        self._stderr.close()
