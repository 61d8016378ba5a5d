"""The file of control keys: what is refused, in which words, and what `ssehub key new` writes."""

from __future__ import annotations

import hashlib
import re
import secrets

import pytest

from named_keys import entry, hash_of
from ssehub.errors import ConfigError
from ssehub.grant import Grant
from ssehub.key_file import MAX_HASHES, Entry, entry_text, parse_keys
from ssehub.rights import Right

KEY, OTHER = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
HASH, OTHER_HASH = hash_of(KEY), hash_of(OTHER)
GOOD = entry("orders", sha256=HASH, rights=["publish"])


def with_channels(*channels: object) -> str:
    return entry("orders", sha256=HASH, rights=["publish"], channels=list(channels))


def with_hash(text: str) -> str:
    return entry("orders", sha256=hashlib.sha256(text.encode()).hexdigest(), rights=["publish"])


def many(count: int) -> str:
    return "".join(f"[keys.k{n}]\nsha256 = '{secrets.token_hex(32)}'\nrights = ['read']\n" for n in range(count))


REFUSED = {
    "empty": ("", "there are no keys in it: `ssehub key new NAME --rights publish` makes a key and its entry"),
    "comment": ("# nothing\n", "there are no keys in it"),
    "no-keys": ("[keys]\n", "there are no keys in it"),
    "not-toml": ("{", "not valid TOML at line 1, column 1: expected tables [keys.NAME]"),
    "key-alone": (f"{KEY}\n", "not valid TOML at"),
    "cut-off": (GOOD[:-3], "not valid TOML at"),
    "twice": (GOOD + GOOD, "each name once"),
    "deep": ("a = " + "[" * 50_000, "not valid TOML"),
    "outside": (f"key = '{KEY}'\n{GOOD}", "unknown entry 'key' outside of a key: write tables [keys.NAME]"),
    "keys-is-a-list": ("keys = []", "keys must be tables: write [keys.NAME] for each key"),
    "key-is-a-string": (f"[keys]\norders = '{KEY}'", "keys.orders must be a table, which begins with [keys.orders]"),
    "array-of-tables": ("[[keys.orders]]\nrights = []", "keys.orders must be a table"),
    "plaintext": (
        entry("orders", key=KEY, rights=["publish"]),
        "keys.orders: unknown entry 'key': the file has hashes of keys, not keys; `ssehub key new NAME",
    ),
    "unknown": (f"{GOOD}expires = 1", "keys.orders: unknown entry 'expires': expected sha256, rights, channels"),
    "unknown-long": (f"{GOOD}{OTHER} = 1", "keys.orders: unknown entry of 43 characters: expected"),
    "dotted-name": (entry("a.b", sha256=HASH, rights=["read"]), "keys.a: unknown entry 'b': expected sha256"),
    "bad-name": (entry('"a b"', sha256=HASH, rights=["read"]), "the name of key 1 must have 1 to 32 letters"),
    "empty-name": (entry('""', sha256=HASH, rights=["read"]), "the name of key 1 must have 1 to 32 letters"),
    "key-as-name": (entry(KEY, sha256=HASH, rights=["read"]), "the name of key 1 must have 1 to 32 letters"),
    "taken-name": (entry("control_key", sha256=HASH, rights=["read"]), "the name of key 1 is control_key, which is"),
    "no-hash": (entry("orders", rights=["publish"]), "keys.orders has no sha256: give the hash of its key"),
    "no-hashes": (entry("orders", sha256=[], rights=["publish"]), "keys.orders has no sha256"),
    "hash-is-a-number": (entry("orders", sha256=5, rights=["publish"]), "keys.orders: sha256 is not 64 hexadecimal"),
    "hash-is-the-key": (entry("orders", sha256=KEY, rights=["publish"]), "keys.orders: sha256 is not 64 hexadecimal"),
    "hash-too-short": (entry("orders", sha256=HASH[:-1], rights=["publish"]), "keys.orders: sha256 is not 64"),
    "hash-with-spaces": (entry("orders", sha256=f"{HASH[:-1]} ", rights=["publish"]), "keys.orders: sha256 is not 64"),
    "second-hash": (
        entry("orders", sha256=[HASH, 3], rights=["publish"]),
        "keys.orders: sha256 number 2 is not 64 hexadecimal digits",
    ),
    "hash-of-nothing": (with_hash(""), "keys.orders: sha256 is the hash of an empty or publicly known key"),
    "hash-of-a-line-end": (with_hash("\n"), "keys.orders: sha256 is the hash of an empty or publicly known key"),
    "hash-of-a-known-key": (with_hash("changeme"), "is the hash of an empty or publicly known key"),
    "hash-of-a-known-line": (with_hash("secret\n"), "is the hash of an empty or publicly known key"),
    "hash-of-a-known-word": (with_hash("Password123"), "is the hash of an empty or publicly known key"),
    "hash-twice": (
        entry("orders", sha256=[HASH, HASH.upper()], rights=["publish"]),
        "keys.orders: sha256 lists a hash twice: remove one",
    ),
    "hash-of-two-names": (
        GOOD + entry("news", sha256=[OTHER_HASH, HASH], rights=["read"]),
        "keys.news has the same key as keys.orders: give each a key of its own",
    ),
    "no-rights": (entry("orders", sha256=HASH), "keys.orders has no rights: list one or more of publish, token, disco"),
    "empty-rights": (entry("orders", sha256=HASH, rights=[]), "keys.orders has no rights: list one or more of"),
    "rights-is-a-string": (
        entry("orders", sha256=HASH, rights="publish"),
        'keys.orders: rights must be a list of strings, such as ["publish"]',
    ),
    "right-is-a-number": (entry("orders", sha256=HASH, rights=[1]), "keys.orders: rights must be a list of strings"),
    "unknown-right": (
        entry("orders", sha256=HASH, rights=["publish", "emit"]),
        "keys.orders: unknown right 'emit': expected publish, token, disconnect, revoke, read, admin",
    ),
    "right-in-capitals": (entry("orders", sha256=HASH, rights=["Publish"]), "unknown right 'Publish'"),
    "key-as-right": (entry("orders", sha256=HASH, rights=[KEY]), "keys.orders: unknown right of 43 characters"),
    "no-channels": (with_channels(), "keys.orders: channels is empty: list channels, or leave channels out for all"),
    "channels-is-a-string": (
        entry("orders", sha256=HASH, rights=["publish"], channels="news"),
        'keys.orders: channels must be a list of strings, such as ["orders.*"]',
    ),
    "channel-is-a-number": (with_channels("news", 5), "keys.orders: channels must be a list of strings"),
    "empty-channel": (with_channels(""), "keys.orders: channels is empty: it needs 1 to 255 characters"),
    "long-channel": (with_channels("x" * 256), "keys.orders: channels"),
    "line-end": (with_channels("a\nb"), "keys.orders: channels"),
    "all": (with_channels("*"), "keys.orders: channels has '*': leave channels out for all channels"),
    "middle": (with_channels("orders.*.eu"), "keys.orders: channels 'orders.*.eu' is not a pattern"),
    "two-stars": (with_channels("orders.**"), "keys.orders: channels 'orders.**' is not a pattern"),
    "many-channels": (with_channels(*map(str, range(1_001))), "channels has 1001 names: at most 1000 are accepted"),
    "many-keys": (many(MAX_HASHES + 1), "it has 1001 hashes: at most 1000 are accepted"),
    "ten-thousand-keys": (many(10_000), "bytes: at most 262144 are accepted"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_b33_file_of_control_keys_is_refused_in_one_line_without_a_key_or_a_hash(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(text)

    shown = str(caught.value)
    assert message in shown
    assert "\n" not in shown and len(shown) < 500
    assert not any(secret in shown for secret in (KEY, OTHER, KEY[:-1], HASH[:-1], HASH.upper(), OTHER_HASH))
    assert not re.search(r"[0-9a-f]{20}", shown)


def test_file_of_control_keys_gives_each_name_its_hashes_rights_and_channels() -> None:
    text = GOOD + entry("ops", sha256=[OTHER_HASH.upper(), hash_of("x")], rights=["admin"], channels=["ops.*", "news"])

    orders, ops = parse_keys(text)

    assert orders == Entry("orders", (bytes.fromhex(HASH),), frozenset([Right.PUBLISH]), None)
    assert ops.digests == (bytes.fromhex(OTHER_HASH), bytes.fromhex(hash_of("x")))
    assert ops.rights == {Right.ADMIN}
    assert ops.grant == Grant(frozenset(["news"]), ("ops.",))


def test_as_many_hashes_as_allowed_are_accepted() -> None:
    assert len(parse_keys(many(MAX_HASHES))) == MAX_HASHES


@pytest.mark.parametrize("channels", [None, ["orders.*", 'with "quotes" and \\', "Bücher 📚"]])
def test_written_entry_is_read_back_as_it_was_meant(channels: list[str] | None) -> None:
    text = entry_text("orders", KEY, ["publish", "token"], channels)

    (found,) = parse_keys(text)

    grant = None if channels is None else Grant(frozenset(channels[1:]), ("orders.",))
    assert found == Entry("orders", (bytes.fromhex(HASH),), frozenset([Right.PUBLISH, Right.TOKEN]), grant)
    assert KEY not in text
