"""How often processes wake up."""

from __future__ import annotations

import re
import time
from pathlib import Path


def wakeups_per_second(pid: int, seconds: float = 4.0) -> float:
    """Return how often the threads of a process stop waiting, in the next `seconds`, by what the kernel counts."""
    before, began = _switches(pid), time.monotonic()
    time.sleep(seconds)
    return (_switches(pid) - before) / (time.monotonic() - began)


def _switches(pid: int) -> int:
    texts = [status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum([int(re.findall(r"\nvoluntary_ctxt_switches:\s+(\d+)", text)[0]) for text in texts])
