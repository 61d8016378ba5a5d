"""URLs as messages show them: no password, in valid URLs and in broken ones."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssehub.bench.addresses import address_of
from ssehub.brokers import create_broker, without_password
from ssehub.config import load_config
from ssehub.errors import ConfigError
from ssehub.urls import without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://alex:mackerel@hub.example/control", "http://hub.example/control"),
        ("http://mackerel@hub.example", "http://hub.example"),
        ("redis://:mackerel@h:6379/0", "redis://h:6379/0"),
        ("redis://h/0?password=mackerel", "redis://h/0"),
        ("redis://h?password=ab@mackerel", "redis://..."),
        ("redis://alex:ab@mackerel@h", "redis://h"),
        ("redis://alex:mack/erel@h", "redis://..."),
        ("redis://alex:mack?erel@h", "redis://..."),
        ("redis://alex:mack#erel@h", "redis://..."),
        ("redis:/alex:mackerel@h", "redis:/h"),
        ("redis//alex:mackerel@h", "..."),
        ("alex:mackerel@h", "alex:h"),
        ("mackerel@h", "h"),
        ("redis+unix://alex:mackerel@/run/redis.sock?db=1", "redis+unix:///run/redis.sock"),
        ("redis+sentinel://alex:mackerel@a:1,b:2/main", "redis+sentinel://a:1,b:2/main"),
        ("http://[::1", "http://[::1"),
        ("", ""),
    ],
)
def test_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_credentials(url) == shown


def test_path_of_a_sqlite_file_is_shown_as_it_is() -> None:
    assert without_password("sqlite:////data/a@b?c.db") == "sqlite:////data/a@b?c.db"


@pytest.mark.parametrize(
    "url", ["redis:/u:mackerel@h", "kafka://u:mackerel@h", "kafka://h?password=mackerel", "http://u:mack/erel@h"]
)
def test_unknown_broker_is_named_without_its_password(url: str) -> None:
    for call in (lambda: create_broker(url), lambda: load_config({"broker": url})):
        with pytest.raises(ConfigError, match="unknown broker") as caught:
            call()

        assert "mack" not in str(caught.value) and "erel" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://alex:mackerel@h", "https://alex:mackerel@h", "http://alex:mackerel@[::1"])
def test_url_of_a_load_test_is_refused_with_a_password_and_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="invalid URL") as caught:
        address_of(url)

    assert "mackerel" not in str(caught.value)


@pytest.mark.soak
@settings(max_examples=20_000 if "SOAK" in os.environ else 100, deadline=None)
@given(
    st.sampled_from(["redis://", "rediss://", "http://", "redis+sentinel://", "//", ""]),
    st.text(max_size=8),
    st.text(max_size=8),
    st.sampled_from(["", "/0", "/a?password=mackerel", "?password=mackerel", "#mackerel"]),
)
@example("redis://", "a/", "@", "")
@example("", "", "?", "#mackerel")
def test_no_url_shows_its_password(scheme: str, before: str, after: str, rest: str) -> None:
    assert "mackerel" not in without_credentials(f"{scheme}{before}:mackerel{after}@host{rest}")
