"""Two named control keys with different rights and channels: every call by each of them, over a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from commands import run
from conftest import CONTROL_KEY, RunningHub, report
from control_requests import FORM, JSON, NDJSON, event_json, form
from named_keys import NamedKey, entry, write_keys, write_text

SHOP = NamedKey("shop", ["publish", "disconnect", "read"], ["orders.*", "news"])
DESK = NamedKey("desk", ["token", "revoke"], ["billing.*", "alerts"])
OWNER = NamedKey("control_key", ["admin"], key=CONTROL_KEY)
WRONG = NamedKey("nobody", [])
KEYS = {"shop": SHOP, "desk": DESK, "control_key": OWNER, "wrong": WRONG, "none": None}
RIGHTS = {
    ("POST", "/emit/"): "publish",
    ("POST", "/token/"): "token",
    ("POST", "/disconnect/"): "disconnect",
    ("POST", "/revoke/"): "revoke",
    ("DELETE", "/revoke/"): "revoke",
    ("GET", "/revoke/"): "read",
    ("POST", "/explain/"): "read",
    ("GET", "/streams/"): "read",
    ("GET", "/channels/"): "read",
    ("GET", "/statistics"): "read",
    ("GET", "/metrics"): "read",
}
OPEN = ("/healthz", "/readyz")
PATHS = (*dict.fromkeys(path for _, path in RIGHTS), *OPEN)
CHANNELS = ("orders.1", "orders.", "orders", "news", "news.1", "billing.7", "alerts", "elsewhere")
PATTERNS = ("orders.*", "orders.eu.*", "order*", "news*", "billing.*", "billing.7.*", "alerts*", "b*")


@dataclass(frozen=True)
class Call:
    """A request. `channels` and `patterns` are what it is about; `events` counts what it publishes: commands, too."""

    label: str
    method: str
    path: str
    body: str = ""
    kind: str = ""
    channels: Sequence[str] = ()
    patterns: Sequence[str] = ()
    events: int = 0

    def expected(self, key: NamedKey | None) -> int:
        """Return the status that docs/control-api.md promises."""
        if self.path in OPEN:
            return 200 if self.method in ("GET", "HEAD") else 405
        if key in (None, WRONG):
            return 401
        assert key is not None
        right = RIGHTS.get(("GET" if self.method == "HEAD" else self.method, self.path))
        if right is None:
            return 405
        if right not in key.rights and "admin" not in key.rights:
            return 403
        if right in ("publish", "token") and key.channels is not None:
            prefixes = [name[:-1] for name in key.channels if name.endswith("*")]
            if not all(channel in key.channels or channel.startswith(tuple(prefixes)) for channel in self.channels):
                return 403
            if not all(pattern[:-1].startswith(tuple(prefixes)) for pattern in self.patterns):
                return 403
        return 200


def calls() -> Iterator[Call]:
    for path in PATHS:
        for method in ("GET", "HEAD", "PUT", "PATCH", "OPTIONS", "POST", "DELETE"):
            if (method, path) not in RIGHTS or method == "GET":
                yield Call("", method, path)
    for channel in CHANNELS:
        yield Call(channel, "POST", "/emit/", form(channel=channel), FORM["content-type"], [channel], events=1)
        yield Call(channel, "POST", "/token/", form(channel=channel, exp="9").replace("&data=x", ""), "", [channel])
        yield Call(channel, "POST", "/disconnect/", f"channel={channel}", events=1)
    for pair in (("orders.1", "news"), ("news", "billing.7"), ("alerts", "billing.7")):
        both = json.dumps({"userId": "*", "channel": pair})
        yield Call(" ".join(pair), "POST", "/emit/", event_json(channel=pair), JSON["content-type"], pair, events=1)
        yield Call(" ".join(pair), "POST", "/token/", both, JSON["content-type"], pair)
        batch = [event_json(channel=pair[0])] * 3 + [event_json(channel=pair[1])]
        array, lines = f"[{','.join(batch)}]", "\n".join(batch)
        yield Call(f"array, {' '.join(pair)}", "POST", "/emit/", array, JSON["content-type"], pair, events=4)
        yield Call(f"lines, {' '.join(pair)}", "POST", "/emit/", lines, NDJSON["content-type"], pair, events=4)
    for pattern in PATTERNS:
        body = json.dumps({"userId": "sam", "patterns": [pattern]})
        yield Call(pattern, "POST", "/token/", body, JSON["content-type"], (), [pattern])
        body = json.dumps({"userId": "sam", "channel": "alerts", "patterns": ["billing.*", pattern]})
        yield Call(f"alerts billing.* {pattern}", "POST", "/token/", body, JSON["content-type"], ["alerts"], [pattern])
    yield Call("of a user", "POST", "/revoke/", "userId={key}")
    yield Call("of a user", "DELETE", "/revoke/", "userId={key}")
    yield Call("of a user", "POST", "/explain/", "userId=sam&channel=elsewhere")


@pytest.fixture(scope="module")
def keyed_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    """A hub with both kinds of keys, on loopback."""
    path = write_keys(tmp_path_factory.mktemp("keys") / "keys.toml", SHOP, DESK)
    running = RunningHub("--control-keys-file", str(path), env={"SSEHUB_CONTROL_KEY": CONTROL_KEY})
    yield running
    running.stop()


def test_b32_every_call_by_every_key_is_answered_as_its_rights_and_channels_say(keyed_hub: RunningHub) -> None:
    table: list[tuple[Call, list[int]]] = []
    published = 0
    with httpx.Client(base_url=keyed_hub.control_url, timeout=20) as http:
        for call in calls():
            row = []
            for name, key in KEYS.items():
                headers = {"Content-Type": call.kind or FORM["content-type"], **(key.headers if key else {})}
                answer = http.request(call.method, call.path, content=call.body.replace("{key}", name), headers=headers)
                row.append(answer.status_code)
                published += call.events * (answer.status_code == 200)
                if answer.status_code == 403 and call.method != "HEAD":
                    assert re.search(rf"control key '{name}'", answer.text), answer.text
                    assert re.search(r"lacks the right|(channel|pattern) '.*' is not allowed", answer.text)
            table.append((call, row))
        metrics = http.get("/metrics", headers=OWNER.headers).text

    report(f"{'call':52}" + "".join(f"{name:>12}" for name in KEYS))
    for call, row in table:
        report(f"{call.method:8}{call.path:14}{call.label:30}" + "".join(f"{status:12}" for status in row))
    for call, row in table:
        assert row == [call.expected(key) for key in KEYS.values()], call
    assert {status for _, row in table for status in row} == {200, 401, 403, 405}
    assert f"\nssehub_events_published_total {float(published)}\n" in metrics


def test_key_is_required_on_loopback_if_there_is_a_file(keyed_hub: RunningHub) -> None:
    answer = httpx.post(f"{keyed_hub.control_url}/emit/", data={"userId": "*", "channel": "news", "data": "x"})

    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert 'try: curl -H "Authorization: Bearer $KEY" -d' in keyed_hub.log


def test_b33_start_with_a_bad_file_of_keys_is_refused_with_one_line_that_does_not_show_it(tmp_path: Path) -> None:
    path = write_text(tmp_path / "keys.toml", entry("orders", key=SHOP.key, rights=["publish"]))

    result = run("serve", "--bind", "127.0.0.1:0", "--control-bind", "127.0.0.1:0", "--control-keys-file", str(path))

    assert (result.returncode, result.stdout) == (2, "")
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"ssehub: control_keys_file {path}: keys.orders: unknown entry 'key': the file has hashes")
    assert SHOP.key not in result.stderr
