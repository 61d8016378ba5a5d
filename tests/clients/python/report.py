"""What all programs share: the arguments, and the lines for the runner."""

from __future__ import annotations

import json
import os
import sys
from typing import NoReturn

URL = sys.argv[1]
LINE_BYTES = int(os.environ["LINE_BYTES"]) if "LINE_BYTES" in os.environ else None
"""What to raise a library's limit on the length of a line to. None: leave it as it is."""


def report(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def message(type: str | None, id: str | None, data: str | None) -> None:
    report({"type": type, "id": id, "data": data})


def opened() -> None:
    report({"open": True})


def error(what: object) -> None:
    report({"error": repr(what)})


def ended(why: object) -> NoReturn:
    report({"ended": repr(why)})
    sys.exit()
