"""Named control keys for tests: each with its file entry, and a list of all that were made, which no log may show."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

MADE: list[str] = []
"""Every key that this process has made, and its hash: `HubProcess.stop` looks for them."""


def new_key() -> str:
    key = secrets.token_urlsafe(32)
    MADE.extend((key, hash_of(key)))
    return key


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class NamedKey:
    """A key that may do `rights` on `channels`. None means all channels."""

    name: str
    rights: Sequence[str]
    channels: Sequence[str] | None = None
    key: str = field(default_factory=new_key)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def entry(self, *other_keys: str) -> str:
        """Return the table of the file. With `other_keys`, those are valid under this name, too."""
        hashes = [hash_of(key) for key in (self.key, *other_keys)]
        return entry(self.name, sha256=hashes if other_keys else hashes[0], rights=self.rights, channels=self.channels)


def entry(name: str, **values: object) -> str:
    """Return a table `[keys.NAME]` with these values, which are written like JSON. None is left out."""
    lines = [f"{field} = {json.dumps(value)}" for field, value in values.items() if value is not None]
    return "\n".join([f"[keys.{name}]", *lines, ""])


def write_text(path: Path, text: str) -> Path:
    """Write a file as a whole."""
    new = path.with_suffix(".new")
    new.write_text(text)
    return new.rename(path)


def write_keys(path: Path, *keys: NamedKey) -> Path:
    """Write the file of `keys`, as a whole."""
    return write_text(path, "\n".join(key.entry() for key in keys))
