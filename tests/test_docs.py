"""The docs say what the code does: every setting, command, option, route, metric and in-band event."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from starlette.routing import Route

from ssehub.cli import ssehub
from ssehub.config import Config
from ssehub.hub import Hub
from ssehub.tokens import Tokens
from ssehub.web.client import create_client_app
from ssehub.web.control import create_control_app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOKENS = Tokens("a secret of 32 bytes, or rather more")
UNITS = ("seconds", "milliseconds", "bytes", "events")


def shown(value: object) -> str:
    if value is None:
        return "none"
    return "empty" if value == [] else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", Config.model_fields)
def test_setting_is_documented_with_default_unit_and_effect(name: str) -> None:
    setting = Config.model_fields[name]
    row = next(line for line in (DOCS / "configuration.md").read_text().split("\n") if line.startswith(f"| `{name}` |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]

    assert cells[1:4] == [f"`SSEHUB_{name.upper()}`", f"`--{name.replace('_', '-')}`", f"`{shown(setting.default)}`"]
    if name.rpartition("_")[2] in UNITS:
        assert cells[4] == name.rpartition("_")[2]
    assert cells[5] == setting.description


def test_no_setting_is_documented_that_is_none() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \| `SSEHUB_", (DOCS / "configuration.md").read_text(), re.MULTILINE))

    assert documented == set(Config.model_fields)


@pytest.mark.parametrize("name", ssehub.commands)
def test_command_and_its_options_are_documented(name: str) -> None:
    section = (DOCS / "commands.md").read_text().split(f"## `ssehub {name}`")[1].split("\n## ")[0]
    command = ssehub.commands[name]
    settings = {f"--{setting.replace('_', '-')}" for setting in Config.model_fields}

    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        if name == "serve" and option.opts[0] in settings:
            continue
        assert f"`{option.opts[0]}" in section


def test_every_route_is_documented() -> None:
    control = create_control_app(Hub(), tokens=TOKENS)
    client = create_client_app(Hub(), tokens=TOKENS)

    for app, page in ((control, "control-api.md"), (client, "client-api.md")):
        text = (DOCS / page).read_text()
        for route in app.routes:
            assert isinstance(route, Route)
            assert f"{route.path.partition('{')[0].rstrip('/')}" in text


def test_every_metric_is_documented() -> None:
    text = (DOCS / "control-api.md").read_text()
    control = (ROOT / "src/ssehub/control.py").read_text()
    names = [*re.findall(r'^            \("(\w+)", "', control, re.MULTILINE), "endings", "round_seconds"]

    assert len(names) > 10
    for name in names:
        assert f"`ssehub_{name}" in text


def test_every_in_band_event_and_every_way_to_end_is_documented() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src/ssehub").rglob("*.py"))
    types = set(re.findall(r'"(stream-[a-z]+)"', sources))

    assert types >= {"stream-reset", "stream-expired"}
    for type in types:
        assert f"| `{type}` |" in (DOCS / "client-api.md").read_text()
    for reason in re.findall(r'^    [A-Z]+ = "(\w+)"$', sources, re.MULTILINE):
        assert f"`{reason}`" in (DOCS / "control-api.md").read_text()


def test_links_between_the_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_make_target_has_its_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert targets

    for target in targets[1].split():
        assert re.search(rf"^{target}:.*## \S", makefile, re.MULTILINE)
