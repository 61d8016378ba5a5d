"""Our protocol under uvicorn's own tests, which come from its source distribution."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from conftest import require

TESTS = Path(__file__).parent
SUITE = TESTS.parent / ".venv" / "uvicorn-tests"
NAME = f"uvicorn-{importlib.metadata.version('uvicorn')}"

_LOGGED = "a client could fill the log with these warnings: an ignored upgrade is a debug line of ours"
EXCEPTIONS = {
    "test_unsupported_ws_upgrade_request_warn_on_auto": _LOGGED,
    "test_header_upgrade_is_not_websocket_depend_installed": _LOGGED,
    "test_header_upgrade_is_websocket_depend_not_installed": _LOGGED,
    "test_trace_logging_on_http_protocol": "our protocol has no lines at uvicorn's level `trace`",
}
"""Tests that our protocol fails on purpose, and why."""
PROVE_NOTHING = (
    "test_fragmentation",
    "test_huge_headers_h11protocol_failure",
    "test_huge_headers_httptools_will_pass",
    "test_huge_headers_httptools",
    "test_huge_headers_h11_max_incomplete",
    "test_httptools_http10_keep_alive_disabled",
)
"""Tests that ignore the fixture, and so test uvicorn's own protocols. test_hostile_requests.py has ours."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uvicorn's source distribution without its package: the tests then import the one that is installed."""
    archive = SUITE / f"{NAME}.tar.gz"
    require(archive.exists(), "uvicorn's own tests (tests/install-tools downloads them)")
    folder = tmp_path_factory.mktemp("uvicorn")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    root = folder / NAME
    shutil.rmtree(root / "uvicorn")
    for tests in ("protocols", "middleware"):
        shutil.copy(TESTS / "uvicorn_conftest.py", root / "tests" / tests / "conftest.py")
    return root


@pytest.mark.parametrize(
    ("module", "least"),
    [
        ("protocols/test_http.py", 84),
        ("protocols/test_websocket.py", 140),
        ("middleware/test_proxy_headers.py", 240),
        ("middleware/test_logging.py", 12),
    ],
)
def test_protocol_passes_uvicorns_own_tests(suite: Path, module: str, least: int) -> None:
    left_out = " or ".join((*EXCEPTIONS, *PROVE_NOTHING))
    options = ("-q", "-o", "addopts=", "-p", "no:cacheprovider", "-k", f"not ({left_out})")
    paths = os.pathsep.join([str(SUITE / "packages"), os.environ.get("PYTHONPATH", "")])

    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/{module}"],
        cwd=suite,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=110,
    )

    assert result.returncode == 0, result.stdout[-4_000:] + result.stderr[-1_000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None and int(passed[1]) >= least
