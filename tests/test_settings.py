"""Settings as values: what each accepts, and a clear error for what it does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import partial
from typing import Any

import pytest

from ssehub import Hub, create_control_app
from ssehub.brokers import create_broker
from ssehub.config import GROUPS, Config
from ssehub.errors import ConfigError
from ssehub.settings import Backpressure, RedisOptions, Retention, Settings, Streams, TcpOptions, settings_of


@pytest.mark.parametrize("group", GROUPS)
def test_defaults_are_accepted(group: type[Settings]) -> None:
    made = group()

    assert {setting.name: getattr(made, setting.name) for setting in settings_of(group)} == {
        setting.name: setting.default for setting in settings_of(group)
    }


def test_every_name_is_declared_once() -> None:
    names = [setting.name for group in GROUPS for setting in settings_of(group)]

    assert len(names) == len(set(names))
    assert set(names) < set(Config.model_fields)


def test_values_at_the_limits_are_accepted() -> None:
    assert Streams(heartbeat_seconds=0, retry_milliseconds=0).heartbeat_seconds == 0
    assert Streams(heartbeat_seconds=86_400, retry_milliseconds=2**31 - 1).heartbeat_seconds == 86_400
    assert Retention(history_events=1, history_seconds=0.001).history_events == 1
    assert RedisOptions(redis_prefix="x" * 100).redis_prefix == "x" * 100


def test_setting_without_a_value_is_none() -> None:
    assert Streams(max_connections=None).max_connections is None


BAD: dict[str, tuple[Callable[..., Settings], dict[str, Any], str]] = {
    "zero": (Retention, {"history_events": 0}, "history_events 0: must be greater than 0"),
    "negative": (Streams, {"heartbeat_seconds": -1}, "heartbeat_seconds -1: must be at least 0"),
    "over-the-most": (Streams, {"heartbeat_seconds": 86_401}, "heartbeat_seconds 86401: must be at most 86400"),
    "not-below": (
        TcpOptions,
        {"tcp_user_timeout_seconds": 2_147_483},
        "tcp_user_timeout_seconds 2147483: must be less than 2147483",
    ),
    "infinite": (Backpressure, {"grace_seconds": float("inf")}, "grace_seconds inf: must be a finite number"),
    "not-a-number": (Backpressure, {"grace_seconds": float("nan")}, "grace_seconds nan: must be a finite number"),
    "string": (Backpressure, {"grace_seconds": "5"}, "grace_seconds '5': must be a number, not str"),
    "fraction": (Retention, {"history_events": 1.5}, "history_events 1.5: must be a whole number, not float"),
    "bool-for-int": (Retention, {"history_events": True}, "history_events True: must be a whole number, not bool"),
    "bool-for-float": (Backpressure, {"grace_seconds": True}, "grace_seconds True: must be a number, not bool"),
    "int-for-bool": (RedisOptions, {"wait_for_broker": 1}, "wait_for_broker 1: must be true or false, not int"),
    "none": (Retention, {"history_events": None}, "history_events None: must be a whole number, not NoneType"),
    "zero-or-none": (Streams, {"max_connections": 0}, "max_connections 0: must be greater than 0"),
    "int-for-str": (RedisOptions, {"redis_prefix": 5}, "redis_prefix 5: must be a string, not int"),
    "prefix-with-brace": (
        RedisOptions,
        {"redis_prefix": "a}b"},
        "redis_prefix 'a}b': must be 1 to 100 characters without spaces or braces",
    ),
    "prefix-empty": (RedisOptions, {"redis_prefix": ""}, "redis_prefix '': must be 1 to 100 characters"),
    "prefix-long": (RedisOptions, {"redis_prefix": "x" * 101}, "redis_prefix 'xxx"),
    "prefix-with-line-end": (RedisOptions, {"redis_prefix": "x\n"}, "redis_prefix 'x\\n': must be 1 to 100 characters"),
}


@pytest.mark.parametrize(("group", "given", "message"), BAD.values(), ids=BAD.keys())
def test_bad_value_raises_an_error_that_names_the_setting(
    group: Callable[..., Settings], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        group(**given)

    assert str(caught.value).startswith(message)


def test_settings_can_not_be_changed() -> None:
    streams = Streams()

    with pytest.raises(FrozenInstanceError):
        streams.heartbeat_seconds = 1  # type: ignore[misc]  # this test is about the error


@pytest.mark.parametrize(
    ("call", "setting", "place"),
    [
        (Hub, {"max_connections": 5}, "streams=Streams(max_connections=…)"),
        (Hub, {"max_streams_per_user": 5}, "stream_limits=StreamLimits(max_streams_per_user=…)"),
        (partial(create_broker, "memory://"), {"idempotency_keys": 5}, "idempotency=Idempotency(idempotency_keys=…)"),
        (partial(create_control_app, Hub()), {"max_event_bytes": 5}, "limits=Limits(max_event_bytes=…)"),
    ],
)
def test_setting_given_by_itself_is_told_its_place(
    call: Callable[..., Any], setting: dict[str, Any], place: str
) -> None:
    (name,) = setting

    with pytest.raises(TypeError, match=re.escape(f"{name} is a setting of ssehub.settings.")) as caught:
        call(**setting)

    assert str(caught.value).endswith(f"give {place}")


def test_unknown_argument_is_refused_as_ever() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_conections'"):
        Hub(max_conections=5)  # type: ignore[call-arg]  # the misspelling is the point
