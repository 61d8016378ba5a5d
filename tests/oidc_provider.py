"""An OpenID provider that nobody here wrote: npm's oidc-provider, driven as browsers and applications drive it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import httpx

from conftest import connects, free_port, wait_until
from node import NODE

FOLDER = Path(__file__).parent / "idp"
IS_INSTALLED = NODE.exists() and (FOLDER / "node_modules" / "oidc-provider").exists()
AUDIENCE = "https://hub.example"
WITH_SESSION = "with-session"
"""The client whose logout tokens, and therefore access tokens, name the session (`sid`)."""
WITHOUT_SESSION = "without-session"
CLIENTS = {WITH_SESSION: "RS256", WITHOUT_SESSION: "ES256"}
"""The clients, and how their tokens are signed."""
SETTINGS_SECONDS = 20.0

Keys = Sequence[tuple[str, str]]
"""Pairs of an algorithm and a `kid`. The first of an algorithm signs, all are published."""


@dataclass(frozen=True)
class Login:
    """What an application gets when somebody logs in."""

    access_token: str
    id_token: str


class IdentityProvider:
    """The provider, in a process of its own, without keys until `configure` has been called."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.jwks_url = f"{self.url}/jwks"
        self.printed: list[str] = []
        """Every line it has printed, except `ready`."""
        self._ready: Queue[None] = Queue()
        command = [str(NODE), "provider.mjs", str(self.port)]
        self._process = subprocess.Popen(
            command, cwd=FOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        Thread(target=self._read, daemon=True).start()
        wait_until(lambda: connects(self.port) or self._process.poll() is not None, SETTINGS_SECONDS)

    def configure(
        self, logout_url: str, keys: Keys = (("RS256", "rsa"), ("ES256", "ec")), page: str = "https://app.example/"
    ) -> None:
        """Publish these keys, and send logout tokens to `logout_url`. `page` is where a login ends. Sessions stay."""
        clients = [
            {
                "client_id": name,
                "token_endpoint_auth_method": "none",
                "redirect_uris": [page],
                "post_logout_redirect_uris": [page],
                "id_token_signed_response_alg": algorithm,
                "backchannel_logout_uri": logout_url,
                "backchannel_logout_session_required": name == WITH_SESSION,
            }
            for name, algorithm in CLIENTS.items()
        ]
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"audience": AUDIENCE, "clients": clients, "keys": list(keys)}) + "\n")
        self._process.stdin.flush()
        self._ready.get(timeout=SETTINGS_SECONDS)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(15)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            pipe.close()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line == "ready\n":
                self._ready.put(None)
            else:
                self.printed.append(line.rstrip("\n"))


@contextmanager
def running_identity_provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()
    try:
        yield provider
    finally:
        provider.stop()


class Person:
    """Somebody with a browser of their own, who has an account at the provider."""

    def __init__(self, provider: IdentityProvider, name: str) -> None:
        self.name = name
        self._http = httpx.Client(base_url=provider.url, timeout=20)
        self._login: Login | None = None

    def close(self) -> None:
        self._http.close()

    def log_in(self, client: str, page: str = "https://app.example/") -> Login:
        """Log in at the provider, unless that has been done, and agree that `client` may listen."""
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        asked = {
            "client_id": client,
            "response_type": "code",
            "redirect_uri": page,
            "scope": "openid listen",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        code = self._follow(self._http.get("/auth", params=asked), page)
        fields = {"client_id": client, "grant_type": "authorization_code", "redirect_uri": page}
        response = self._http.post("/token", data={**fields, "code": code, "code_verifier": verifier})
        tokens = response.raise_for_status().json()
        self._login = Login(tokens["access_token"], tokens["id_token"])
        return self._login

    def log_out(self) -> None:
        """Log out at the provider. It has sent its logout tokens when this returns."""
        assert self._login, f"{self.name} has not logged in"
        form = self._http.get("/session/end", params={"id_token_hint": self._login.id_token}).raise_for_status().text
        confirmed = self._http.post(action_of(form), data={"xsrf": value_of(form, "xsrf"), "logout": "yes"})
        assert confirmed.is_redirect, confirmed.text

    def _follow(self, response: httpx.Response, page: str) -> str:
        """Fill in the provider's forms until it leads back to the page; return the code that it hands over."""
        for _ in range(10):
            location = response.headers.get("location", "")
            if location.startswith(page):
                return str(parse_qs(urlsplit(location).query)["code"][0])
            if response.is_redirect:
                response = self._http.get(location)
                continue
            form = response.raise_for_status().text
            fields = {"prompt": value_of(form, "prompt"), "login": self.name, "password": "any"}
            response = self._http.post(action_of(form), data=fields)
        raise AssertionError(f"the login of {self.name} does not end: {response.text}")


def action_of(form: str) -> str:
    found = re.search(r'<form [^>]*action="([^"]+)"', form)
    assert found, form
    return found[1]


def value_of(form: str, name: str) -> str:
    found = re.search(rf'<input [^>]*name="{name}" value="([^"]+)"', form)
    assert found, form
    return found[1]
