"""Publications: commands, what brokers store of them, and idempotency keys."""

from __future__ import annotations

from typing import Any

import pytest

from event_decoding import event
from ssehub.errors import InvalidEvent
from ssehub.event import Event
from ssehub.publication import Disconnect, IdempotencyKey, load_entry


@pytest.mark.parametrize(
    "entry",
    [
        Event(("a", "b"), ("x", "y"), data="1\n2", type="note", id="7", retry=5, ttl=1.5),
        Event(("a",), ("*",), data="", store=False),
        Event(("a",), ("*",), payload="id: 7\ndata: x\n"),
        Disconnect(("alex",), ("chat",), 7),
        Disconnect((), ("chat",)),
    ],
)
def test_entry_is_loaded_as_it_was_dumped(entry: Event | Disconnect) -> None:
    assert load_entry(entry.dump()) == entry


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"command":"dance"}', "unknown command 'dance': a newer version of ssehub may have stored it"),
        ('{"command":"disconnect"}', "not a stored command: KeyError('users')"),
        ('{"command":', "not a stored command: JSONDecodeError"),
        ('{"command":"disconnect","users":["a\\n"],"channels":[],"retry":5}', "userId 'a\\n' contains a line break"),
        ("{}", "not a stored event: "),
        ("", "not a stored event: "),
        ("[]", "not a stored event: "),
    ],
)
def test_other_text_is_rejected_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        load_entry(text)

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "channel is missing: name a user, a channel, or both"),
        ({"users": ("*",)}, "channel is missing"),
        ({"users": ("",)}, "userId is empty"),
        ({"users": ("a",), "retry": True}, "retry True is not a whole number"),
    ],
)
def test_invalid_command_is_rejected(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        Disconnect(**given)

    assert str(caught.value).startswith(message)


def test_command_for_everyone_names_no_user() -> None:
    assert Disconnect(users=("alex", "*"), channels=("chat",)).users == ()


def test_idempotency_key_depends_on_key_scope_and_events() -> None:
    key = IdempotencyKey.make("k", ("chat",), [event(data="1")])

    assert IdempotencyKey.make("k", ("chat",), [event(data="1")]) == key
    assert IdempotencyKey.make("k", ("chat",), [event(data="2")]).name == key.name
    assert IdempotencyKey.make("k", ("chat",), [event(data="2")]).body != key.body
    assert IdempotencyKey.make("k", ("news",), [event(data="1")]).name != key.name
    assert IdempotencyKey.make("l", ("chat",), [event(data="1")]).name != key.name


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", 5, None])
def test_invalid_idempotency_key_is_rejected(key: object) -> None:
    with pytest.raises(InvalidEvent, match=r"^idempotencyKey "):
        IdempotencyKey.make(key, (), [])
