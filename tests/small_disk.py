"""Programs that run on a disk of 1 MiB, to see what happens when it is full."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import require, works

UNSHARE = (["unshare", "-rm"], ["unshare", "-m", "--propagation", "unchanged"])
"""For any user; for root in a chroot, where user namespaces are refused and `/` is not a mount point."""


def run_on_small_disk(script: str, folder: Path) -> Any:
    """Run `script` of this folder in namespaces of its own; return the JSON in its last line.

    It is given `folder`, where it mounts the disk: see `small_disk`.
    """
    unshare = next((command for command in UNSHARE if works(*command, "true")), None)
    require(unshare, "unshare, or the right to mount")
    assert unshare is not None
    command = [*unshare, sys.executable, str(Path(__file__).parent / script), str(folder)]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@contextmanager
def small_disk(folder: str) -> Iterator[Path]:
    """Mount a file system of 1 MiB on `folder`, in a mount namespace of this process."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    try:
        yield Path(folder)
    finally:
        subprocess.run(["umount", folder], check=True)
