"""Python's requests. The form is "data", "files" (a multipart form), "file" (the text is a file of it) or "json"."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import requests

_, url, form, channel, kind, *files = sys.argv


def arguments(fields: dict[str, str]) -> dict[str, Any]:
    if form in ("data", "json"):
        return {form: fields}
    parts: dict[str, Any] = {name: (None, value) for name, value in fields.items()}
    if form == "file" and "data" in fields:
        parts["data"] = ("text.txt", fields["data"])
    return {"files": parts}


def post(path: str, fields: dict[str, str]) -> requests.Response:
    response = requests.post(url + path, **arguments(fields))
    if not response.ok:
        sys.exit(f"status {response.status_code}: {response.text}")
    return response


token = post("/token/", {"userId": "alex", "channel": channel})
sys.stdout.write(f"{token.json()['token'] if form == 'json' else token.text}\n")
for file in files:
    text = Path(file).read_bytes().decode()
    post("/emit/", {"userId": "*", "channel": channel, "event": kind, "data": text})
