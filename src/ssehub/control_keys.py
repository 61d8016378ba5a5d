"""Control keys: the one in `control_key`, which may do everything, and the named ones of `control_keys_file`.

A key is looked up by a secret image of it: its BLAKE2s hash under a random secret of this process (RFC 7693, 2.9: a
keyed hash). Nobody outside can choose or predict an image, so that the time of a look-up in a dictionary of images says
nothing about how much of a guess is right, nor which key it resembles, nor how many keys there are.

    seen     the images of the keys that were found valid before. Nearly every request ends here.
    hashes   otherwise the image of the key's SHA-256, which is all that the file has. The hash that is found there is
             compared once more, in constant time; if there is none, a random one is. Every wrong key takes all this.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from hashlib import blake2s, sha256
from pathlib import Path
from typing import TYPE_CHECKING

from .credentials import check_control_key
from .errors import ConfigError, ControlKeyError
from .key_file import CONTROL_KEY_NAME, Entry, check_distinct, parse_keys
from .loglimit import limited_logger
from .rights import NO_KEY, ControlKey, KeyRefusal, KeyUse, Right
from .watched import NOTHING_YET, FromFile, LastGood, WatchedFile

if TYPE_CHECKING:
    from .fanout.statistics import Statistics

__all__ = ["ControlKey", "ControlKeys", "Right"]

logger = limited_logger("ssehub.control")

FILE = "control_keys_file"


class ControlKeys(FromFile):
    """Recognises the keys that requests to the control app bring.

    `control_key` is one with all rights. `file` has named keys, by their hashes; it is read in the constructor, unless
    `last_good` has its content, and again when it changes. Without both, no key is required. Raises ConfigError.
    """

    def __init__(
        self, control_key: str | None = None, *, file: str | Path | None = None, last_good: LastGood = NOTHING_YET
    ) -> None:
        super().__init__()
        self._secret = secrets.token_bytes(32)
        self._nothing = (secrets.token_bytes(32), NO_KEY)
        self._uses: dict[str, KeyUse] = {}
        """By the names of all keys: the counts go on when the key of a name is replaced."""
        self._removed: set[str] = set()
        self._wrong = 0
        self.is_required = control_key is not None or file is not None
        self.anyone = ControlKey("", frozenset(Right), use=self._uses.setdefault("", KeyUse()))
        """The key of every request if none is required."""
        self._seen: dict[bytes, ControlKey] = {}
        """By the images of the keys themselves. It spares most requests two more hashes."""
        self._own: list[Entry] = []
        if control_key is not None:
            check_control_key(control_key)
            digest = sha256(control_key.encode()).digest()
            self._own = [Entry(CONTROL_KEY_NAME, (digest,), frozenset(Right), None)]
        self._keys = self._keys_of([])
        """Each with its hash, by the image of the hash."""
        self.version = 0
        """How often the keys have been replaced: a key that was found before may be gone since."""
        if file is not None:
            self._file = WatchedFile(Path(file), FILE, self._use, content=last_good.get(FILE))

    def find(self, given: bytes) -> ControlKey | None:
        """Return the control key that `given` is, or None. The time that it takes says nothing about the keys."""
        image = blake2s(given, key=self._secret).digest()
        return self._seen.get(image) or self._find_by_hash(given, image)

    def _find_by_hash(self, given: bytes, image: bytes) -> ControlKey | None:
        digest = sha256(given).digest()
        valid, key = self._keys.get(self._image(digest), self._nothing)
        if not hmac.compare_digest(valid, digest) or not _is_strong(given, key.name):
            return None
        self._seen[image] = key
        return key

    def _image(self, value: bytes) -> bytes:
        return blake2s(value, key=self._secret).digest()

    def of_header(self, authorization: str) -> ControlKey:
        """Return the key in a header `Authorization: Bearer KEY`. Raises ControlKeyError, and counts that."""
        scheme, _, given = authorization.partition(" ")
        key = self.find(given.encode("latin-1")) if scheme.lower() == "bearer" else None
        if key is None:
            self._wrong += 1
            raise ControlKeyError("the control key is missing or wrong: send it as 'Authorization: Bearer KEY'")
        return key

    def measure(self, statistics: Statistics) -> None:
        """Add what has been counted since this was last called. Several apps of one hub may have keys of their own."""
        super().measure(statistics)
        for name in self._removed:
            statistics.control_requests.pop(name, None)
            statistics.refused_keys.pop(name, None)
        self._removed.clear()
        for name, use in self._uses.items():
            _move(use.admitted, statistics.control_requests, name)
            _move(use.refused, statistics.refused_keys, name)
        _move({KeyRefusal.KEY: self._wrong}, statistics.refused_keys, "")
        self._wrong = 0

    def _use(self, text: str) -> str:
        entries = parse_keys(text)
        check_distinct([*self._own, *entries])
        self._keys = self._keys_of(entries)
        self.version += 1
        hashes = sum([len(entry.digests) for entry in entries])
        return f"{len(entries)} key{'s' * (len(entries) != 1)}, {hashes} hash{'es' * (hashes != 1)}"

    def _keys_of(self, entries: Iterable[Entry]) -> dict[bytes, tuple[bytes, ControlKey]]:
        """Return all keys, as they are looked up, and forget what was kept of those that are no longer there."""
        entries = [*self._own, *entries]
        names = {"", *(entry.name for entry in entries)}
        self._removed |= self._uses.keys() - names
        self._removed -= names
        self._uses = {name: self._uses.get(name) or KeyUse() for name in names}
        self._seen = {}
        keys: dict[bytes, tuple[bytes, ControlKey]] = {}
        for entry in entries:
            key = ControlKey(entry.name, entry.rights, entry.grant, self._uses[entry.name])
            keys |= {self._image(digest): (digest, key) for digest in entry.digests}
        return keys


def _move(counts: dict[Right, int] | dict[KeyRefusal, int], totals: dict[str, dict[str, int]], name: str) -> None:
    """Add `counts` to the totals of `name`, and begin again."""
    if counts:
        of_name = totals.setdefault(name, {})
        for label, count in counts.items():
            of_name[label.value] = of_name.get(label.value, 0) + count
        counts.clear()


def _is_strong(given: bytes, name: str) -> bool:
    """True if a key that fits a hash may be used. If not, one line names the entry."""
    try:
        check_control_key(given.decode(errors="surrogateescape"), f"keys.{name}")
    except ConfigError as exc:
        logger.warning("control key refused although %s has its hash: %s", FILE, exc)
        return False
    return True
