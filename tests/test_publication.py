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


def test_idempotency_key_has_the_hashes_that_logs_remember() -> None:
    one = Event(["b", "a"], ["alex", "*"], 'say "hi"\n\u00e9\\\x7f\u2028', "t", "i1", 5, ttl=2.5)
    other = Event(["a"], ["*"], payload="data: x\nid: 7\n\n")

    alone = IdempotencyKey.make('k "\u00e9', ("owner", "a", "b"), [one])
    batch = IdempotencyKey.make("k", ("",), [one, other, Event(["a"], ["*"], "x", store=False)])

    assert alone == ("1bbfbd460bbb911ce89defbe6d5c0ac77ce79e3f", "401baccd3dca50fab7cd22538584276193f36d7c")
    assert batch == ("54843615a813c51c04db107bbf6ec8c092fc87f1", "440ca179a8ed4b98d98ad3ce2226fdfc7192242b")


@pytest.mark.parametrize("channels", [["chat"], ["news", "chat"], ['a "\u00e9']])
def test_idempotency_key_of_one_event_is_on_its_channels(channels: list[str]) -> None:
    one = Event(channels, ["*"], 'say "hi"\n\u00e9')

    key = IdempotencyKey.of_event('k "\u00e9', "owner", one)

    assert key == IdempotencyKey.make('k "\u00e9', ("owner", *sorted(channels)), [one])
