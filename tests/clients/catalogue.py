"""The clients: what each language folder contains, how it is installed, and how its programs are run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conftest import CHROMIUM
from node import NODE

HERE = Path(__file__).parent
NPM = NODE.parent / "npm"


@dataclass(frozen=True, slots=True)
class Client:
    """One program, and what `clients.toml` says about it."""

    name: str
    language: Language
    package: str
    program: str
    reconnects: str
    query: str
    configure: str
    notes: Mapping[str, str]
    """Markdown for each scenario whose result is not as it should be."""

    @property
    def version(self) -> str:
        return self.language.version(self.package)

    def command(self, url: str, types: str) -> list[str]:
        return [*self.language.command(self.program), f"{url}&{self.query}" if self.query else url, types]


class Language(ABC):
    """A folder of programs."""

    name: str
    folder: Path

    @abstractmethod
    def missing(self) -> str | None:
        """Return the tool that is missing here, or None."""

    def is_locked(self, package: str) -> bool:
        """Return True if the version of the package is that of a lock file, not that of the machine."""
        return True

    @property
    def is_installed(self) -> bool:
        """True if the packages of the lock file are installed."""
        return True

    @abstractmethod
    def install(self) -> None:
        """Install the packages, unless they are installed."""

    @abstractmethod
    def version(self, package: str) -> str: ...

    @abstractmethod
    def command(self, program: str) -> list[str]: ...

    def source(self, program: str) -> Path:
        """Return the file of a program."""
        return self.folder / program

    @cached_property
    def clients(self) -> list[Client]:
        file = self.folder / "clients.toml"
        tables: list[dict[str, Any]] = tomllib.loads(file.read_text())["clients"] if file.exists() else []
        return [self._client(table) for table in tables]

    def _client(self, table: dict[str, Any]) -> Client:
        notes = {
            scenario.strip(): text.strip()
            for scenarios, text in table.get("notes", {}).items()
            for scenario in scenarios.split(",")
        }
        return Client(
            name=table["name"],
            language=self,
            package=table["package"],
            program=table["program"],
            reconnects=table["reconnects"],
            query=table.get("query", ""),
            configure=table.get("configure", "").strip(),
            notes=notes,
        )


class Node(Language):
    name = "JavaScript (Node)"
    folder = HERE / "node"

    def missing(self) -> str | None:
        return None if NODE.exists() else "Node"

    def is_locked(self, package: str) -> bool:
        return package not in ("node", "chromium")

    @property
    def is_installed(self) -> bool:
        return _is_newer(self.folder / "node_modules" / ".package-lock.json", self.folder / "package-lock.json")

    def install(self) -> None:
        if not self.is_installed:
            _run(str(NPM), "ci", "--no-audit", "--no-fund", "--loglevel=error", cwd=self.folder)

    def version(self, package: str) -> str:
        if package == "node":
            return _first_number(_output(str(NODE), "--version"))
        packages = json.loads((self.folder / "package-lock.json").read_text())["packages"]
        return str(packages[f"node_modules/{package}"]["version"])

    def command(self, program: str) -> list[str]:
        options = ["--experimental-eventsource"] if program == "node.mjs" else []
        return [str(self._binary), "--no-warnings", *options, str(self.folder / program)]

    @cached_property
    def _binary(self) -> Path:
        """Node itself: `NODE` is a script that starts it, and would leave it running when it is terminated."""
        return Path(_output(str(NODE), "--print", "process.execPath").strip())


class Browser(Node):
    """Pages that Chromium shows. Their packages are those of the folder `node`."""

    name = "JavaScript (Chromium)"
    folder = HERE / "browser"

    def missing(self) -> str | None:
        return None if CHROMIUM.exists() else "Chromium"

    @property
    def is_installed(self) -> bool:
        return NODE_LANGUAGE.is_installed

    def install(self) -> None:
        NODE_LANGUAGE.install()

    def version(self, package: str) -> str:
        return (
            _first_number(_output(str(CHROMIUM), "--version"))
            if package == "chromium"
            else NODE_LANGUAGE.version(package)
        )

    def command(self, program: str) -> list[str]:
        return [sys.executable, str(self.folder / "show.py"), program]


class Python(Language):
    name = "Python"
    folder = HERE / "python"

    def missing(self) -> str | None:
        return None

    @property
    def is_installed(self) -> bool:
        return _is_newer(self.folder / ".venv" / "installed", self.folder / "requirements.txt")

    def install(self) -> None:
        if not self.is_installed:
            shutil.rmtree(self.folder / ".venv", ignore_errors=True)
            _run(sys.executable, "-m", "venv", "--without-pip", str(self.folder / ".venv"))
            pip = [sys.executable, "-m", "pip", "--python", *self._python, "--quiet", "--disable-pip-version-check"]
            _run(*pip, "install", "--no-compile", "--no-deps", "--requirement", str(self.folder / "requirements.txt"))
            (self.folder / ".venv" / "installed").touch()

    @property
    def _python(self) -> list[str]:
        return [str(self.folder / ".venv" / "bin" / "python")]

    def version(self, package: str) -> str:
        pinned = re.search(
            rf"^{re.escape(package)}==(\S+)", (self.folder / "requirements.txt").read_text(), re.M | re.I
        )
        if not pinned:
            raise LookupError(f"requirements.txt does not pin {package}")
        return pinned[1]

    def command(self, program: str) -> list[str]:
        return [*self._python, str(self.folder / program)]


class Go(Language):
    name = "Go"
    folder = HERE / "go"

    def missing(self) -> str | None:
        return None if shutil.which("go") else "Go"

    @property
    def is_installed(self) -> bool:
        return (self.folder / "build").exists()

    def install(self) -> None:
        _run("go", "build", "-o", "build/", "./...", cwd=self.folder)

    def version(self, package: str) -> str:
        required = re.search(rf"{re.escape(package)} v(\S+)", (self.folder / "go.mod").read_text())
        if not required:
            raise LookupError(f"go.mod does not require {package}")
        return required[1]

    def command(self, program: str) -> list[str]:
        return [str(self.folder / "build" / program)]

    def source(self, program: str) -> Path:
        return self.folder / program / "main.go"


class Shell(Language):
    """Programs that are installed on the machine."""

    name = "shell"
    folder = HERE / "shell"

    def missing(self) -> str | None:
        return None if shutil.which("curl") else "curl"

    def is_locked(self, package: str) -> bool:
        return False

    def install(self) -> None:
        pass

    def version(self, package: str) -> str:
        return _first_number(_output(package, "--version"))

    def command(self, program: str) -> list[str]:
        return [sys.executable, str(self.folder / program)]


NODE_LANGUAGE = Node()
BROWSER = Browser()
LANGUAGES: list[Language] = [BROWSER, NODE_LANGUAGE, Python(), Go(), Shell()]


def find(name: str) -> Client:
    """Return the client of this name."""
    return next(client for language in LANGUAGES for client in language.clients if client.name == name)


def _is_newer(stamp: Path, lock: Path) -> bool:
    return stamp.exists() and stamp.stat().st_mtime >= lock.stat().st_mtime


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=300)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def _first_number(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+", text)
    if not found:
        raise LookupError(f"no version in {text!r}")
    return found[0]
