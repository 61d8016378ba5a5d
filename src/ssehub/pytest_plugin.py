"""The pytest fixture `sse_hub`, for projects that use a hub; see `ssehub.testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import ManualHub


@pytest.fixture
def sse_hub() -> ManualHub:
    """A hub whose clock the test controls. It starts when it is first used, in the event loop of the test."""
    from .testing import ManualHub  # here, as every run of pytest loads this file

    return ManualHub()
