"""The results of the latest runs, and the page that shows them."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import publishing
from .catalogue import LANGUAGES, Client
from .scenarios import SCENARIOS, Outcome

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
TEMPLATE = HERE / "page.md"
ROOT = HERE.parent.parent
PAGE = ROOT / "docs" / "clients.md"

Results = dict[str, Any]
"""`clients`: by name, with version, date and a cell for each scenario. `experiments`: by name, with date and text."""


def load() -> Results:
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"clients": {}, "experiments": {}}
    return results


def save(results: Results) -> None:
    known = [client.name for client in all_clients()]
    kept = {name: results["clients"][name] for name in known if name in results["clients"]}
    text = json.dumps({**results, "clients": kept}, indent=1, ensure_ascii=False)
    RESULTS.write_text(text + "\n")


def all_clients() -> list[Client]:
    return [client for language in LANGUAGES for client in language.clients]


def add_cell(results: Results, client: Client, scenario: str, outcome: Outcome, date: str) -> None:
    entry = results["clients"].setdefault(client.name, {"cells": {}})
    entry.update(version=client.version, date=date)
    entry["cells"][scenario] = {"text": outcome.text, "fine": outcome.is_fine}


def problems(results: Results, clients: Iterable[Client] | None = None) -> list[str]:
    """Return what is missing between results and notes: every result that is not as it should be needs a note."""
    return [
        f"{client.name}: {problem}"
        for client in (all_clients() if clients is None else clients)
        for problem in _problems(client, results["clients"].get(client.name, {"cells": {}})["cells"])
    ]


def _problems(client: Client, cells: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    for scenario in SCENARIOS:
        cell = cells.get(scenario)
        if cell is None:
            yield f"{scenario}: it has not been run"
        elif not cell["fine"] and scenario not in client.notes:
            yield f"{scenario}: {cell['text']}: clients.toml must say why, and what to do"
        elif cell["fine"] and scenario in client.notes:
            yield f"{scenario}: {cell['text']}: its note in clients.toml is out of date"
    for scenario in client.notes.keys() - SCENARIOS.keys():
        yield f"clients.toml has a note on {scenario!r}, which is no scenario"


def page(results: Results) -> str:
    """Return the text of docs/clients.md."""
    clients = [client for client in all_clients() if client.name in results["clients"]]
    dates = sorted({entry["date"] for entry in results["clients"].values()})
    parts = {
        "date": " and ".join(dates),
        "count": str(len(clients)),
        "scenarios": "\n".join(f"| {name} | {_description(name)} |" for name in SCENARIOS),
        "publishing": publishing.table(),
        "table": _table(clients, results),
        "clients": "\n\n".join(_section(client, results["clients"][client.name]) for client in clients),
        "experiments": "\n".join(
            f"| {name} | {entry['text']} | {entry['date']} |" for name, entry in results["experiments"].items()
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text())


def _description(scenario: str) -> str:
    return DESCRIPTIONS[scenario]


def _table(clients: Iterable[Client], results: Results) -> str:
    head = ["client", "version", "language", *SCENARIOS]
    rows = [head, ["---"] * len(head)]
    for client in clients:
        entry = results["clients"][client.name]
        cells = [entry["cells"].get(scenario, {"text": "not run", "fine": False}) for scenario in SCENARIOS]
        texts = ["✓" if cell["fine"] else cell["text"] for cell in cells]
        rows.append([f"[{client.name}](#{_anchor(client.name)})", entry["version"], client.language.name, *texts])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _section(client: Client, entry: Mapping[str, Any]) -> str:
    by = {"library": "It reconnects by itself.", "never": "It does not reconnect."}
    how = by.get(client.reconnects, "It does not reconnect by itself; the program does.")
    program = f"[program](../{client.language.source(client.program).relative_to(ROOT)})"
    made = f"{client.language.name}, version {entry['version']}, run on {entry['date']}"
    lines = [f"### {client.name}", "", _wrapped(f"{made}: {program}. {how}")]
    if client.configure:
        lines += ["", client.configure if "\n" in client.configure else _wrapped(client.configure)]
    notes: dict[str, list[str]] = {}
    for scenario in SCENARIOS:
        if scenario in client.notes:
            notes.setdefault(client.notes[scenario], []).append(scenario)
    if notes:
        lines.append("")
    for note, scenarios in notes.items():
        cells = ", ".join(f"*{name}*: {entry['cells'][name]['text']}" for name in scenarios if name in entry["cells"])
        lines.append(_wrapped(f"- {cells}. {' '.join(note.split())}", indent="  "))
    return "\n".join(lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


DESCRIPTIONS = {
    "in order": "500 events in batches: several lines, Unicode, types, data that is empty or begins with an empty line",
    "large": "an event of 100 KB and one of 1 MB, each in one line",
    "kill": "the hub is killed (`kill -9`), and starts again on its SQLite log; connections are refused for 5 s",
    "cut inside data": "the connection ends inside a `data:` line, as in the following columns elsewhere",
    "cut before id": "between the `data:` line of an event and its `id:` line",
    "cut behind id": "between the `id:` line of an event and the empty line that ends it",
    "cut between events": "between two events of one chunk",
    "cut in hub frame": "inside the `id:` line of a `stream-position`",
    "cut in chunk header": "inside the header of a chunk",
    "cut before first": "the client has received `stream-hello` but no event; events are published before it returns",
    "reset": "the client returns after its id has left the hub's history: it hears `stream-reset`, then live events",
    "drain": "the hub is stopped with SIGTERM, and starts again; until then connections wait, as at a proxy",
    "401": "the token is refused: ✓ if the client stops asking",
    "busy": "the hub is full: ✓ if the client waits for as long as `retry:` says, and returns when there is room",
}
