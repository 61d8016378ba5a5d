"""curl, wget and httpie: `python command.py URL TOOL/FORM CHANNEL TYPE FILE…`.

The forms are those of the functions below. `curl2` is `curl --http2`, which asks to go on in HTTP/2 (Upgrade: h2c).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

JSON = "Content-Type: application/json"


def curl(form: str, url: str, fields: dict[str, str], file: str | None) -> list[str]:
    command = ["curl", "--silent", "--show-error", "--fail-with-body"]
    if form == "json":
        text = fields if file is None else {**fields, "data": Path(file).read_bytes().decode()}
        return [*command, "--header", JSON, "--data-binary", _spooled(json.dumps(text)), url]
    option = "--data-urlencode" if form == "urlencoded" else "--form-string"
    for name, value in fields.items():
        command += [option, f"{name}={value}"]
    if file is not None and form == "urlencoded":
        is_empty = Path(file).stat().st_size == 0  # curl leaves out a field whose file is empty
        command += ["--data-urlencode", "data=" if is_empty else f"data@{file}"]
    elif file is not None:
        command += ["--form", f"data={'@' if form == 'file' else '<'}{file}"]
    return [*command, url]


def curl2(form: str, url: str, fields: dict[str, str], file: str | None) -> list[str]:
    return [*curl(form, url, fields, file), "--http2"]


def wget(form: str, url: str, fields: dict[str, str], file: str | None) -> list[str]:
    text = fields if file is None else {**fields, "data": Path(file).read_bytes().decode()}
    command = ["wget", "--quiet", "--content-on-error", "--tries=1", "--output-document=-"]
    if form == "json":
        return [*command, f"--header={JSON}", f"--post-file={_spooled(json.dumps(text))[1:]}", url]
    return [*command, f"--post-file={_spooled(urlencode(text))[1:]}", url]


def http(form: str, url: str, fields: dict[str, str], file: str | None) -> list[str]:
    items = [f"{name}={value}" for name, value in fields.items()]
    if file is not None:
        items.append(f"data@{file}" if form == "file" else f"data=@{file}")
    options = {"json": "--json", "form": "--form", "multipart": "--multipart", "file": "--multipart"}
    return ["http", "--ignore-stdin", "--check-status", "--body", options[form], "POST", url, *items]


def _spooled(text: str) -> str:
    """Write `text` to a file, because an argument may not be as long as an event; return its name as `@name`."""
    Path("body").write_text(text)
    return "@body"


def main(url: str, how: str, channel: str, kind: str, *files: str) -> None:
    tool, _, form = how.partition("/")
    build = {"curl": curl, "curl2": curl2, "wget": wget, "http": http}[tool]
    answer = _run(build(form, f"{url}/token/", {"userId": "alex", "channel": channel}, None))
    sys.stdout.write(f"{json.loads(answer)['token'] if form == 'json' else answer}\n")
    for file in files:
        _run(build(form, f"{url}/emit/", {"userId": "*", "channel": channel, "event": kind}, file))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode}: {done.stdout} {done.stderr}")
    return done.stdout.strip()


main(*sys.argv[1:])
