"""An OpenID provider that nobody here wrote, two nodes on one log, and Chromium: who logs out there hears no more."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from conftest import ERROR_LINES, RunningHub, report, require, wait_until
from node import POLYFILL
from oidc_provider import (
    AUDIENCE,
    CLIENTS,
    FOLDER,
    IS_INSTALLED,
    WITH_SESSION,
    WITHOUT_SESSION,
    IdentityProvider,
    Person,
    running_identity_provider,
)
from redis_servers import RedisServer
from reverse_proxies import adapted, printed, program, running_proxy
from streams import RawStream, get

pytestmark = pytest.mark.e2e
SOAK = "SOAK" in os.environ

LISTEN = """async token => {
  const login = await fetch("/events/login", {method: "POST", headers: {"Authorization": `Bearer ${token}`}});
  const listen = (name, source) => {
    const stream = window.streams[name] = {login: login.status, heard: [], opened: 0, revokedAt: 0, state: 0};
    source.onopen = () => { stream.opened++; stream.state = source.readyState; };
    source.onmessage = event => stream.heard.push(event.data);
    source.onerror = () => stream.state = source.readyState;
    source.addEventListener("stream-revoked", () => stream.revokedAt ||= Date.now());
  };
  window.streams = {};
  listen("cookie", new EventSource("/events/"));
  listen("header", new EventSourcePolyfill("/events/", {headers: {"Authorization": `Bearer ${token}`}}));
}"""
"""Logs in with the token, and listens with the cookie and, by the polyfill, with the token in a header."""
NUMBERS = itertools.count(1)
OPEN, CLOSED = 1, 2
"""The `readyState` of an EventSource that is connected, and of one that has given up."""


@dataclass(frozen=True)
class Site:
    """A provider, and two nodes that accept its tokens. It sends logout tokens to the first one only."""

    provider: IdentityProvider
    nodes: tuple[RunningHub, RunningHub]

    @property
    def logout_url(self) -> str:
        return f"{self.nodes[0].url}/events/backchannel-logout"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    require(IS_INSTALLED, "the npm package oidc-provider")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-provider-")))
        valkey = RedisServer("valkey", folder)
        stack.callback(valkey.kill)
        provider = stack.enter_context(running_identity_provider())
        provider.configure("http://127.0.0.1:9/")
        nodes = []
        for _ in range(2):
            nodes.append(RunningHub(*accepting(provider), "--broker", valkey.url))
            stack.callback(nodes[-1].stop)
        running = Site(provider, (nodes[0], nodes[1]))
        provider.configure(running.logout_url)
        yield running
        assert not ERROR_LINES.search(nodes[0].log + nodes[1].log)


def accepting(provider: IdentityProvider) -> list[str]:
    """Return the options of a hub that accepts the access tokens, and the logout tokens, of the provider."""
    return [
        *("--jwks", provider.jwks_url, "--issuer", provider.url, "--audience", ",".join([AUDIENCE, *CLIENTS])),
        *("--grant-templates", "user.{sub}", "--token-cookie", "sse", "--heartbeat-seconds", "1"),
    ]


@pytest.fixture
def person(site: Site) -> Iterator[Person]:
    """Somebody with a name of their own in each test."""
    person = Person(site.provider, f"person-{next(NUMBERS)}")
    yield person
    person.close()


def listening_page(browser: Browser, url: str, token: str) -> Page:
    """Return a page of the hub's own origin that listens twice. It has cookies of its own."""
    page = browser.new_context().new_page()
    page.goto(f"{url}/events/")  # 401, but a page of this origin
    page.add_script_tag(path=POLYFILL)
    page.evaluate(LISTEN, token)
    return page


def streams_of(pages: list[Page]) -> list[dict[str, Any]]:
    return [stream for page in pages for stream in page.evaluate("() => Object.values(window.streams)")]


def status(hub: RunningHub, token: str) -> int:
    """Return the status of a request for a stream with this token."""
    with httpx.stream("GET", f"{hub.url}/events/", headers={"Authorization": f"Bearer {token}"}) as response:
        return response.status_code


@pytest.mark.soak
def test_who_logs_out_at_the_provider_hears_no_more_on_any_node_and_does_not_come_back(
    site: Site, browser: Browser
) -> None:
    people = {client: Person(site.provider, f"person-{next(NUMBERS)}") for client in CLIENTS}
    tokens = {client: person.log_in(client).access_token for client, person in people.items()}
    pages = {
        client: [listening_page(browser, node.url, token) for node in site.nodes] for client, token in tokens.items()
    }
    for client, person in people.items():
        wait_until(lambda: [stream["state"] for stream in streams_of(pages[client])] == [OPEN] * 4)  # noqa: B023  # called at once
        site.nodes[0].emit(userId=person.name, channel=f"user.{person.name}", data=f"hello {client}")
        wait_until(lambda: all(stream["heard"] for stream in streams_of(pages[client])))  # noqa: B023  # called at once

    took, statuses = {}, []
    for client, person in people.items():
        began = time.time()
        person.log_out()
        wait_until(lambda: all(stream["revokedAt"] for stream in streams_of(pages[client])))  # noqa: B023  # called at once
        took[client] = max(stream["revokedAt"] for stream in streams_of(pages[client])) / 1_000 - began
        statuses += [status(node, tokens[client]) for node in site.nodes]
        site.nodes[0].emit(userId=person.name, channel=f"user.{person.name}", data="not for them")
    everything = [page for group in pages.values() for page in group]
    wait_until(lambda: [stream["state"] for stream in streams_of(everything)] == [CLOSED] * 8, 30)
    streams = streams_of(everything)
    for page in everything:
        page.context.close()
    for person in people.values():
        person.close()
    report(", ".join(f"{client}: the last stream ended after {one * 1000:.0f} ms" for client, one in took.items()))

    assert max(took.values()) < (1 if SOAK else 5)
    assert statuses == [401] * 4
    assert [stream["heard"] for stream in streams] == [[f"hello {client}"] for client in CLIENTS for _ in range(4)]
    assert [(stream["login"], stream["opened"]) for stream in streams] == [(204, 1)] * 8
    assert {f"logout accepted {client}" for client in CLIENTS} <= set(site.provider.printed)


@pytest.mark.soak
@pytest.mark.only_soak
@pytest.mark.parametrize("client", CLIENTS)
def test_page_behind_nginx_listens_with_a_cookie_until_its_user_logs_out_and_no_log_has_a_token(
    site: Site, browser: Browser, client: str
) -> None:
    require(program("nginx"), "nginx")
    name = f"person-{next(NUMBERS)}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ssehub-nginx-")))
        hub, other = site.nodes
        nginx = stack.enter_context(running_proxy("nginx", hub.port, hub.control_port, folder, with_app(folder)))
        url = f"https://localhost:{nginx.tls_port}/app/"
        write_app(folder, site.provider.url, client)
        site.provider.configure(f"http://localhost:{nginx.plain_port}/events/backchannel-logout", page=url)
        context = browser.new_context(ignore_https_errors=True)
        stack.callback(context.close)
        page = context.new_page()
        page.goto(url)
        page.fill("input[name=login]", name)
        page.fill("input[name=password]", "any")
        page.click("button[type=submit]")
        page.click("button[type=submit]")  # agree that the application may listen
        page.wait_for_function("document.querySelector('#state').textContent === 'open'")
        token = page.evaluate("() => window.token")
        elsewhere = bearing(other, token)
        hub.emit(userId=name, channel=f"user.{name}", data="hello")
        page.wait_for_function("document.querySelectorAll('li').length === 1")
        cookies = context.cookies()

        with context.expect_page() as opened:
            page.click("#logout")
        opened.value.wait_for_selector("button[value=yes]")
        began = time.time()
        opened.value.click("button[value=yes]")
        page.wait_for_function("window.revokedAt")
        took = page.evaluate("() => window.revokedAt") / 1_000 - began
        assert b"event: stream-revoked\n" in elsewhere.read_to_end()
        page.wait_for_function("document.querySelector('#state').textContent === 'closed for good'")
        log = (folder / "access.log").read_text()
    site.provider.configure(site.logout_url)
    report(f"{client}: the stream ended {took * 1000:.0f} ms after the click. nginx's access log:\n{log}")

    assert took < 1
    assert [status(node, token) for node in site.nodes] == [401, 401]
    (cookie,) = [one for one in cookies if one["name"] == "sse"]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Lax")
    assert sorted(re.findall(r'"(\S+ /events/[^ ?]*)\S* HTTP/[\d.]+" (\d+)', log)) == [
        ("GET /events/", "200"),
        ("GET /events/", "401"),
        ("POST /events/backchannel-logout", "200"),
        ("POST /events/login", "204"),
    ]
    for part in token.split("."):
        assert part not in log + hub.log + other.log


def with_app(folder: Path) -> str:
    """Return nginx's configuration of docs/proxies.md, with an access log, and with the application beside the hub."""
    more = f"access_log {folder}/access.log; root {folder}/www;"
    return adapted(printed("nginx"), {"    listen 443 ssl http2;\n": f"    listen 443 ssl http2;\n    {more}\n"})


def write_app(folder: Path, provider_url: str, client: str) -> None:
    path = folder / "www" / "app" / "index.html"
    path.parent.mkdir(parents=True)
    path.write_text((FOLDER / "app.html").read_text().replace("PROVIDER", provider_url).replace("CLIENT", client))


def test_log_out_ends_the_session_and_no_other_where_tokens_name_it(site: Site, person: Person) -> None:
    elsewhere = Person(site.provider, person.name)
    token, other = (one.log_in(WITH_SESSION).access_token for one in (person, elsewhere))
    streams = [bearing(node, one) for node in site.nodes for one in (token, other)]

    person.log_out()
    for stream in streams[::2]:
        assert b"event: stream-revoked\n" in stream.read_to_end()
    site.nodes[1].emit(userId=person.name, channel=f"user.{person.name}", data="still here")
    for stream in streams[1::2]:
        stream.read_event("still here")
        stream.close()
    elsewhere.close()

    assert [status(node, one) for node in site.nodes for one in (token, other)] == [401, 200, 401, 200]


def test_log_out_ends_every_session_of_a_person_where_tokens_name_none(site: Site, person: Person) -> None:
    elsewhere, bystander = Person(site.provider, person.name), Person(site.provider, f"not-{person.name}")
    tokens = [one.log_in(WITHOUT_SESSION).access_token for one in (person, elsewhere, bystander)]
    streams = [bearing(node, token) for node in site.nodes for token in tokens]

    person.log_out()
    for stream in [*streams[:2], *streams[3:5]]:
        assert b"event: stream-revoked\n" in stream.read_to_end()
    site.nodes[0].emit(userId=bystander.name, channel=f"user.{bystander.name}", data="still here")
    for stream in (streams[2], streams[5]):
        stream.read_event("still here")
        stream.close()
    for one in (elsewhere, bystander):
        one.close()

    assert [status(node, token) for node in site.nodes for token in tokens] == [401, 401, 200] * 2


def bearing(hub: RunningHub, token: str) -> RawStream:
    """Open a stream with a token in its header."""
    stream = RawStream(hub.port, get("/events/", f"Authorization: Bearer {token}"))
    stream.read_until(b"event: stream-hello\n")
    return stream


def test_keys_of_the_provider_change_while_streams_are_open(site: Site, person: Person) -> None:
    old, new = (("RS256", "rsa"), ("ES256", "ec")), (("RS256", "rsa-2"), ("ES256", "ec-2"))
    first = {client: person.log_in(client).access_token for client in CLIENTS}
    streams = [bearing(node, token) for node in site.nodes for token in first.values()]

    site.provider.configure(site.logout_url, (*new, *old))
    second = {client: person.log_in(client).access_token for client in CLIENTS}
    accepted = [status(node, token) for node in site.nodes for token in (*first.values(), *second.values())]
    site.nodes[0].emit(userId=person.name, channel=f"user.{person.name}", data="the keys have changed")
    for stream in streams:
        stream.read_event("the keys have changed")
    person.log_out()  # the logout tokens are signed with the new keys
    for stream in streams:
        assert b"event: stream-revoked\n" in stream.read_to_end()

    assert accepted == [200] * 8
