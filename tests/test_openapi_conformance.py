"""Both OpenAPI documents are true: schemathesis sends what they allow and what they forbid to a running hub.

It compares statuses, content types, headers and bodies with the documents, and sends requests without a key or token,
too. Streams have no end that it could wait for, so they are left out by name and tried by hand.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import CONTROL_KEY, RunningHub
from identity_provider import AUDIENCE, ISSUER, IdentityProvider
from openapi_hooks import RUNS

TESTS = Path(__file__).parent
KEY = {"Authorization": f"Bearer {CONTROL_KEY}"}
FULL_SCALE = "SOAK" in os.environ
STREAMS = {"listen", "followStatistics", "followTrace"}
"""Operations that answer with a stream."""
ITSELF = "getOpenAPI"
"""schemathesis leaves out the operation that it has the document from. `test_web_openapi.py` has tests of it."""
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A hub with a control key, tokens of its own and of a provider, logins by cookie, and some runs."""
    jwks = tmp_path_factory.mktemp("provider") / "jwks.json"
    jwks.write_text(json.dumps(IdentityProvider().jwks))
    provider = [f"--jwks={jwks}", f"--issuer={ISSUER}", f"--audience={AUDIENCE}", "--channel-claim=channels"]
    hub = RunningHub(*provider, "--token-cookie=sse", "--allow-all-channels", env={"SSEHUB_CONTROL_KEY": CONTROL_KEY})
    try:
        for run in RUNS:
            create(hub, run)
        yield hub
    finally:
        hub.stop()


def create(hub: RunningHub, run: str) -> None:
    fields = {"userId": "*", "channel": "chat", "stoppable": "true", "restart": "true"}
    httpx.put(f"{hub.control_url}/runs/{run}", data=fields, headers=KEY).raise_for_status()


def token_of(hub: RunningHub) -> str:
    fields = {"userId": "alex", "channel": "chat"}
    return httpx.post(f"{hub.control_url}/token/", data=fields, headers=KEY).raise_for_status().text


def document_at(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json", headers=KEY).raise_for_status().json()
    return found


def operations_of(document: dict[str, Any]) -> set[str]:
    return {one["operationId"] for item in document["paths"].values() for one in item.values()}


def conform(folder: Path, url: str, config: str, authorization: str, examples: int, phases: str) -> str:
    """Run schemathesis against the app at `url`, over every operation that ends; return its summary.

    It keeps what has failed in `folder`.
    """
    operations = operations_of(document_at(url))
    left_out = [f"--exclude-operation-id={name}" for name in STREAMS & operations]
    command = [SCHEMATHESIS, "--config-file", TESTS / config, "run", f"{url}/openapi.json"]
    bounds = [f"--max-examples={examples}", "--seed=1", f"--phases={phases}", "--no-shrink", "--continue-on-failure"]
    found = subprocess.run(
        [*map(str, command), f"--header=Authorization: {authorization}", *left_out, *bounds],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        text=True,
    )
    said = "\n".join([line[:500] for line in found.stdout.splitlines()])
    assert found.returncode == 0, f"{said}\n{found.stderr[-2000:]}"
    tested = re.search(r"Tested: (\d+)", said)
    assert tested and int(tested[1]) == len(operations - STREAMS - {ITSELF}), said
    return said[said.index("SUMMARY") :]


@pytest.mark.timeout(1_500)
@pytest.mark.soak
def test_client_app_answers_as_its_document_says(hub: RunningHub, tmp_path: Path) -> None:
    token, examples = token_of(hub), 200 if FULL_SCALE else 10

    said = conform(tmp_path, hub.url, "openapi_client.toml", f"Bearer {token}", examples, "coverage,fuzzing")

    sys.stdout.write(said)
    assert hub.process.poll() is None


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/events/", {}),
        ("/events/", {"since": "earliest", "channel": "chat", "end": "cut"}),
        ("/events/", {"run": "streamed", "dialect": "ai-sdk"}),
        ("/statistics/events", {}),
        ("/trace/", {"userId": "alex", "address": "unix"}),
    ],
)
def test_stream_has_the_status_and_content_type_of_its_document(
    hub: RunningHub, path: str, query: dict[str, str]
) -> None:
    is_public = path == "/events/"
    url = hub.url if is_public else hub.control_url
    create(hub, "streamed")
    headers = {"Authorization": f"Bearer {token_of(hub)}"} if is_public else KEY
    described = document_at(url)["paths"][path]["get"]
    assert described["operationId"] in STREAMS
    assert set(query) <= {one["name"] for one in described.get("parameters", [])}

    with httpx.stream("GET", f"{url}{path}", params=query, headers=headers) as response:
        media_type = response.headers["content-type"].partition(";")[0]
    refused = httpx.get(f"{url}{path}", headers={**headers, "Authorization": "Bearer wrong"})

    assert (response.status_code, media_type) == (200, "text/event-stream")
    assert media_type in described["responses"]["200"]["content"]
    assert (refused.status_code, "401" in described["responses"]) == (401, True)


@pytest.mark.timeout(1_500)
@pytest.mark.soak
def test_control_app_answers_as_its_document_says(hub: RunningHub, tmp_path: Path) -> None:
    """It also revokes the tokens of everyone, so that no test of streams may follow."""
    examples, phases = (200, "coverage,fuzzing,stateful") if FULL_SCALE else (10, "coverage,fuzzing")

    said = conform(tmp_path, hub.control_url, "openapi_control.toml", f"Bearer {CONTROL_KEY}", examples, phases)

    sys.stdout.write(said)
    assert hub.process.poll() is None
