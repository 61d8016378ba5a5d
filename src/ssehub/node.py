"""Nodes: the processes that share a log, and how they are told apart.

The workers of one group are one node here, since any of them answers for all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple, Self

from .timestamps import rfc3339

_WIRE = {"started_at": "startedAt"}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: where it runs, and where its control app listens."""

    id: str
    """Random, so that a process that is started again is another node."""
    host: str
    pid: int
    """For a group of workers, that of their parent."""
    control: str | None
    """The address of its control app as it is configured, None if that is unknown."""
    started_at: str
    version: str

    @classmethod
    def here(cls, control: str | None = None) -> Self:
        """Return a new node that stands for this process."""
        return cls(
            secrets.token_hex(8),
            socket.gethostname(),
            os.getpid(),
            control,
            rfc3339(time.time()),
            metadata.version("ssehub"),
        )

    def to_json(self) -> dict[str, Any]:
        return {_WIRE.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Return the node that `text` describes as JSON. Raises ValueError."""
        try:
            found = json.loads(text)
        except RecursionError:
            raise ValueError("nested too deep") from None
        if not isinstance(found, dict):
            raise ValueError("not an object")
        values: dict[str, Any] = {
            field.name: found.get(_WIRE.get(field.name, field.name)) for field in dataclasses.fields(cls)
        }
        for name, value in values.items():
            is_right = isinstance(value, int) if name == "pid" else isinstance(value, str)
            if not is_right and not (name == "control" and value is None):
                raise ValueError(f"{name} is {value!r:.40}")
        return cls(**values)


class Nodes(NamedTuple):
    """This node, and the others that share its log."""

    this: Node
    others: Sequence[Node] | None = ()
    """Those that are known to run, None if that is unknown at present."""
    problem: str | None = None
    """Why it is unknown."""
