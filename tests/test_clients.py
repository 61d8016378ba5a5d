"""Client libraries hear every event once, whatever happens to their connection: a few of docs/clients.md, or all."""

from __future__ import annotations

import os

import pytest

from clients import results
from clients.__main__ import installed, run_all, run_experiments
from clients.catalogue import Client, find
from clients.program import Message
from clients.verdict import Sent, compare
from conftest import require

SOAK = "SOAK" in os.environ
FEW = ("@microsoft/fetch-event-source", "eventsource", "httpx-sse", "curl")
FEW_SCENARIOS = ("cut before id", "drain")


def usable_clients() -> list[Client]:
    """Return a few clients, or at full scale all whose language is installed."""
    if SOAK:
        return installed(results.all_clients())
    clients = [find(name) for name in FEW]
    for language in {client.language for client in clients}:
        missing = language.missing()
        require(not missing and language.is_installed, missing or f"the packages of {language.name}")
    return clients


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.timeout(3600 if SOAK else 120)
def test_clients_hear_every_event_once_except_where_the_page_says_otherwise() -> None:
    outcomes = run_all(usable_clients(), None if SOAK else FEW_SCENARIOS, repeat=3 if SOAK else 1)

    unexpected = [
        f"{client.name}, {scenario}: {outcome.text} {outcome.details}"
        for scenario, client, outcome in outcomes
        if outcome.is_fine != (scenario not in client.notes)
    ]
    assert not unexpected


@pytest.mark.e2e
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.only_soak
def test_experiments_lose_nothing() -> None:
    outcomes = run_experiments()

    assert [f"{name}: {outcome.text}" for name, outcome in outcomes if not outcome.is_fine] == []


def test_page_shows_the_latest_results_and_explains_each_that_is_not_fine() -> None:
    latest = results.load()

    assert results.problems(latest) == []
    assert results.PAGE.read_text() == results.page(latest), "run `make clients ARGS=--page`"


def test_results_are_of_the_locked_versions() -> None:
    latest = results.load()["clients"]
    clients = [client for client in results.all_clients() if client.language.is_locked(client.package)]

    versions = {client.name: latest[client.name]["version"] for client in clients}

    assert len(clients) > 20
    assert versions == {client.name: client.version for client in clients}, "run `make clients`"


SENT = [
    Sent("1", "message", '{"n": 1}'),
    Sent("2", "greeting", '{"n": 2}'),
    Sent("3", "empty", ""),
]
HEARD = [Message(event.type, event.id, event.data) for event in SENT]


@pytest.mark.parametrize(
    ("heard", "difference"),
    [
        (HEARD, "all once"),
        ([Message(None, None, message.data) for message in HEARD], "all once"),
        ([Message("stream-hello", "0", "{}"), *HEARD], "all once"),
        (HEARD[1:], "lost 1"),
        (HEARD[:2], "lost 1"),
        ([*HEARD, HEARD[1]], "twice 1"),
        ([HEARD[1], HEARD[0], HEARD[2]], "out of order"),
        ([HEARD[0], Message("message", "2", '{"n": 2}'), HEARD[2]], "altered 1"),
        ([Message("message", "1", ' {"n": 1}'), *HEARD[1:]], "altered 1"),
        ([Message("message", "0", '{"n": 1}'), *HEARD[1:]], "wrong id 1"),
        ([Message("message", "0", '{"n"'), *HEARD], "incomplete 1"),
        ([Message("message", "0", '{"n": 1'), *HEARD], "incomplete 1"),
        ([Message("message", "1", '{"n": 1'), *HEARD[1:]], "lost 1, incomplete 1"),
        ([*HEARD, Message("message", "9", "")], "1 extra"),
        ([Message(None, "0", "{}"), *HEARD], "1 extra"),
        ([], "lost 3"),
    ],
)
def test_comparison_counts_what_is_wrong(heard: list[Message], difference: str) -> None:
    assert str(compare(SENT, heard)) == difference
