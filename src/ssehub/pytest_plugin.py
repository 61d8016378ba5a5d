"""The fixture `sse_hub` for projects that publish; see `ssehub.testing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import ManualHub


@pytest.fixture
def sse_hub() -> ManualHub:
    """A hub on a clock of its own, which starts at its first use in the test's event loop."""
    from .testing import ManualHub  # not before it is asked for: every pytest run loads this file

    return ManualHub()
