"""The Python code of the documentation, run as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def block_with(page: Path, text: str) -> str:
    """Return the block of Python code on `page` that contains `text`."""
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if text in block]
    return found


def run_block(code: str, **names: object) -> dict[str, Any]:
    """Run a block of code and return its names."""
    namespace = {"__name__": "block", **names}
    exec(compile(code, "block", "exec"), namespace)
    return namespace
