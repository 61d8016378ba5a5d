"""The file of control keys: what `control_keys_file` may contain, and how an entry of it is written.

    [keys.orders]
    sha256 = "…"                       # of the key, in hexadecimal; or a list, while the key is being replaced
    rights = ["publish", "token"]
    channels = ["orders.*", "news"]    # left out: all channels

The messages name the entry. They never show a key or a hash, nor a long text that might be one.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .credentials import MIN_CONTROL_KEY_BYTES, is_hash_of_known_value
from .errors import ConfigError, InvalidEvent
from .fields import check_name
from .grant import WILDCARD, Grant, check_pattern
from .rights import Right

MAX_BYTES = 256 * 2**10
"""It is parsed in the event loop, and 256 KiB of TOML take a tenth of a second."""
MAX_HASHES = 1_000
MAX_CHANNELS = 1_000
"""Most channels and patterns of one key: each pattern is looked at for each event."""
CONTROL_KEY_NAME = "control_key"
"""The name of the key that is set by itself, in `control_key` or `control_key_file`."""
MAX_NAME = 32
"""Shorter than a key of 32 bytes in any spelling, so that a key in place of its name is never shown."""
FIELDS = ("sha256", "rights", "channels")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HASH = re.compile(r"[0-9A-Fa-f]{64}")
_PLACE = re.compile(r" \((at [^()]+)\)$")
_NEW = "`ssehub key new NAME --rights publish` makes a key and its entry"
_RIGHTS = ", ".join(Right)


class Entry(NamedTuple):
    """A table `[keys.NAME]`. `digests` are the SHA-256 of the keys that are valid."""

    name: str
    digests: tuple[bytes, ...]
    rights: frozenset[Right]
    grant: Grant | None


def parse_keys(text: str) -> list[Entry]:
    """Return the entries of a file with this content. Raises ConfigError for the first thing that is wrong with it."""
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_BYTES:
        raise ConfigError(f"it has {size} bytes: at most {MAX_BYTES} are accepted")
    tables = _tables(_parsed(text))
    entries = [_entry(number, name, table) for number, (name, table) in enumerate(tables.items(), 1)]
    count = sum([len(entry.digests) for entry in entries])
    if count > MAX_HASHES:
        raise ConfigError(f"it has {count} hashes: at most {MAX_HASHES} are accepted")
    check_distinct(entries)
    return entries


def check_distinct(entries: Iterable[Entry]) -> None:
    """Raise ConfigError if two of the hashes are the same."""
    owners: dict[bytes, str] = {}
    for entry in entries:
        for digest in entry.digests:
            other = owners.setdefault(digest, entry.name)
            if other != entry.name:
                raise ConfigError(
                    f"{_where(entry.name)} has the same key as {_where(other)}: give each a key of its own; {_NEW}"
                )
        if len(set(entry.digests)) < len(entry.digests):
            raise ConfigError(f"{_where(entry.name)}: sha256 lists a hash twice: remove one")


def entry_text(name: str, key: str, rights: Sequence[str], channels: Sequence[str] | None) -> str:
    """Return the entry for `key`. Raises ConfigError if a file with it would be refused."""
    lines = [
        f"[keys.{_checked_name('the name', name)}]",
        f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"',
        f"rights = {_array(rights)}",
        *([] if channels is None else [f"channels = {_array(channels)}"]),
    ]
    text = "\n".join(lines) + "\n"
    parse_keys(text)
    return text


def _array(values: Sequence[str]) -> str:
    return json.dumps(list(values), ensure_ascii=False)  # strings of JSON and of TOML are written in the same way


def _where(name: str) -> str:
    return name if name == CONTROL_KEY_NAME else f"keys.{name}"


def _parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("not valid TOML: it is nested too deeply") from None
    except tomllib.TOMLDecodeError as exc:
        place = _PLACE.search(str(exc))  # the rest of the message may quote the file
        raise ConfigError(
            f"not valid TOML{f' {place[1]}' if place else ''}: expected tables [keys.NAME], each name once"
        ) from None


def _tables(document: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in document:
        if name != "keys":
            raise ConfigError(f"unknown entry{_shown(name)} outside of a key: write tables [keys.NAME]")
    tables = document.get("keys", {})
    if not isinstance(tables, dict):
        raise ConfigError("keys must be tables: write [keys.NAME] for each key")
    if not tables:
        raise ConfigError(f"there are no keys in it: {_NEW}")
    return tables


def _entry(number: int, name: str, table: object) -> Entry:
    where = f"keys.{_checked_name(f'the name of key {number}', name)}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table, which begins with [{where}]")
    for field in table:
        if "key" in field:
            raise ConfigError(f"{where}: unknown entry{_shown(field)}: the file has hashes of keys, not keys; {_NEW}")
        if field not in FIELDS:
            raise ConfigError(f"{where}: unknown entry{_shown(field)}: expected {', '.join(FIELDS)}")
    return Entry(name, _digests(where, table), _rights(where, table), _grant(where, table))


def _checked_name(what: str, name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ConfigError(f"{what} must have 1 to {MAX_NAME} letters, digits, - and _, such as orders: rename it")
    if name == CONTROL_KEY_NAME:
        raise ConfigError(f"{what} is {name}, which is the name of the key in the setting {name}: rename it")
    return name


def _digests(where: str, table: Mapping[str, Any]) -> tuple[bytes, ...]:
    given = table.get("sha256")
    hashes = given if isinstance(given, list) else [given]
    if given is None or not hashes:
        raise ConfigError(f"{where} has no sha256: give the hash of its key; {_NEW}")
    for number, value in enumerate(hashes, 1):
        which = f"{where}: sha256" if len(hashes) == 1 else f"{where}: sha256 number {number}"
        if not isinstance(value, str) or not _HASH.fullmatch(value):
            raise ConfigError(f"{which} is not 64 hexadecimal digits: {_NEW}")
        if is_hash_of_known_value(bytes.fromhex(value)):
            raise ConfigError(f"{which} is the hash of an empty or publicly known key: {_NEW}")
    return tuple(map(bytes.fromhex, hashes))


def _rights(where: str, table: Mapping[str, Any]) -> frozenset[Right]:
    rights = _strings(f"{where}: rights", table.get("rights", []), "publish")
    if not rights:
        raise ConfigError(f"{where} has no rights: list one or more of {_RIGHTS}")
    for right in rights:
        if right not in Right.__members__.values():
            raise ConfigError(f"{where}: unknown right{_shown(right)}: expected {_RIGHTS}")
    return frozenset(map(Right, rights))


def _grant(where: str, table: Mapping[str, Any]) -> Grant | None:
    if "channels" not in table:
        return None
    names = _strings(f"{where}: channels", table["channels"], "orders.*")
    if not names:
        raise ConfigError(f"{where}: channels is empty: list channels, or leave channels out for all of them")
    if len(names) > MAX_CHANNELS:
        raise ConfigError(f"{where}: channels has {len(names)} names: at most {MAX_CHANNELS} are accepted")
    for name in names:
        _check_channel(where, name)
    patterns = [name for name in names if name.endswith(WILDCARD)]
    return Grant.of([name for name in names if not name.endswith(WILDCARD)], patterns)


def _check_channel(where: str, name: str) -> None:
    if name == WILDCARD:
        raise ConfigError(f"{where}: channels has '*': leave channels out for all channels")
    try:
        (check_pattern if WILDCARD in name else check_name)(f"{where}: channels", name)
    except InvalidEvent as exc:
        raise ConfigError(str(exc)) from None


def _strings(where: str, value: object, example: str) -> list[str]:
    if not isinstance(value, list) or not all([isinstance(item, str) for item in value]):
        raise ConfigError(f'{where} must be a list of strings, such as ["{example}"]')
    return value


def _shown(text: str) -> str:
    return f" {text!r}" if len(text) < MIN_CONTROL_KEY_BYTES else f" of {len(text)} characters"
