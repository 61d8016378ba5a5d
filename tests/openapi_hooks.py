"""Extends schemathesis for `test_openapi_conformance.py`: bodies and answers of NDJSON, runs that exist, and rules.

`schemathesis run` loads this file. A rule is something that a request has to obey and that no schema can say: that two
parameters exclude each other, or that a time is in the future. Requests that are meant to be valid are made to obey.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext

AnyCase = Case[Any]
Rule = Callable[[AnyCase], None]
RUNS = ["one", "two", "three"]
"""Half of the runs that are named are one of these, so that there often is one."""
MAX_FIELDS = 1_000
MAX_QUERY_ITEMS = 200
"""The server reads 64 KiB of a head."""


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Return an array as lines. What is no array, because it is meant to be wrong, is one line."""
    return "\n".join([json.dumps(one) for one in (value if isinstance(value, list) else [value])]).encode()


@schemathesis.serializer("text/event-stream")
def event_stream(context: Any, value: Any) -> bytes:
    return str(value).encode(errors="replace")


@schemathesis.deserializer("application/x-ndjson")
def objects(context: Any, response: Any) -> list[Any]:
    return [json.loads(line) for line in response.content.splitlines()]


@schemathesis.hook
def map_case(context: HookContext, case: AnyCase) -> AnyCase:
    """Name runs that exist, and make what is meant to be valid obey the rules."""
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return case
    if case.path_parameters.get("run") is not None and random.random() < 0.5:
        case.path_parameters["run"] = random.choice(RUNS)
    if isinstance(case.body, dict | list):
        case.body = whole(case.body)
    if rule := RULES.get(f"{case.method} {case.path}"):
        rule(case)
    return case


def whole(value: Any) -> Any:
    """Return `value` with whole numbers as such. For a schema 1.0 is an integer, too, but not for the hub."""
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.hook
def filter_case(context: HookContext, case: AnyCase) -> bool:
    """Leave out forms of more fields than a form may have, and values of a wrong type, which a form sends as text.

    Also wrong lines of a pipe: it refuses them in a response with the status 200.
    """
    is_negative = case.meta is not None and case.meta.generation.mode is GenerationMode.NEGATIVE
    if is_negative and (case.query or {}).get("stream") == "1":
        return False
    if not isinstance(case.body, dict) or "form" not in (case.media_type or ""):
        return True
    values = [one for value in case.body.values() for one in (value if isinstance(value, list) else [value])]
    return len(values) <= MAX_FIELDS and not (is_negative and any([not isinstance(one, str) for one in values]))


def emit(case: AnyCase) -> None:
    """A pipe needs lines. An idempotency key is given in the header, or with the events."""
    body: Any = case.body
    events = [event for event in (body if isinstance(body, list) else [body]) if isinstance(event, dict)]
    if "stream" in case.query and case.media_type != "application/x-ndjson":
        del case.query["stream"]
    if "stream" in case.query:
        case.headers.pop("Idempotency-Key", None)
        for event in events:
            if event.get("store") is False:  # schemathesis overlooks that it can't have an id then
                event.pop("id", None)
    if any(["idempotencyKey" in event for event in events]):
        case.headers.pop("Idempotency-Key", None)


def page_of_streams(case: AnyCase) -> None:
    if "address" in case.query:
        case.query["address"] = random.choice(["127.0.0.1", "10.0.0.0/8", "2001:db8::/64", "unix"])
    for exclusive in (("sort", "group"), ("cursor", "sort"), ("cursor", "group")):
        if case.query.keys() >= set(exclusive):
            del case.query[exclusive[1]]


def cursor_of_revocations(case: AnyCase) -> None:
    if "after" in case.query:
        case.query["after"] = "dXNlcjphbGV4"  # user:alex


def question(case: AnyCase) -> None:
    body: Any = case.body
    if isinstance(body, dict):
        for name, value in (("address", "192.0.2.7"), ("origin", "https://app.example")):
            if name in body:
                body[name] = value


def revocation(case: AnyCase) -> None:
    body: Any = case.body
    if not isinstance(body, dict):
        return
    if body.pop("token", None) is not None:  # it would have to be valid
        body["jti"] = "a token"
    if "issuedBefore" in body:
        body["issuedBefore"] = min(body["issuedBefore"], time.time() - 60)
    if "expiresAt" in body:
        body["expiresAt"] = max(body["expiresAt"], time.time() + 3600)


def append(case: AnyCase) -> None:
    query = case.query
    if query.keys() & {"channel", "userId", "keep", "idle", "announce", "stoppable"}:
        for name in ("channel", "userId"):
            query[name] = query.get(name, ["chat"])[:MAX_QUERY_ITEMS]
    if "error" in query:
        query["finish"] = "failed"


def stop(case: AnyCase) -> None:
    if random.random() < 0.5:
        case.query.update(run=random.choice(RUNS), generation=1)


RULES: dict[str, Rule] = {
    "POST /emit/": emit,
    "GET /streams/": page_of_streams,
    "GET /revoke/": cursor_of_revocations,
    "POST /revoke/": revocation,
    "DELETE /revoke/": revocation,
    "POST /explain/": question,
    "POST /runs/{run}": append,
    "POST /events/stop": stop,
}
