"""What a control key that is limited to channels may do to a run: a run is on the channels that it was created with.

Between the look at a run and the call that changes it, the run may be deleted, and begin anew on other channels. So the
store is told which generation was looked at, and refuses any other; then the run is looked at again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from ..errors import ConflictReason, RunConflict, UnknownRun
from ..rights import ControlKey
from ..runs.conflicts import stale
from ..runs.runs import Runs

MAX_LOOKS = 5

Answer = TypeVar("Answer")


async def change_run(
    runs: Runs,
    name: str,
    key: ControlKey,
    change: Callable[[int | None], Awaitable[Answer]],
    generation: int | None = None,
) -> Answer:
    """Return the result of `change`, a call that changes the run `name`, or creates it.

    It is given the only generation that it may change, 0 if there is no run, or None if it may change any: the
    `generation` that the client has named, if it has, or else the one whose channels the key may use. Raises what
    `change` raises; KeyForbidden; RunConflict if the run has another generation than the client has named.
    """
    if key.grant is None:
        return await change(generation)
    for looks_left in reversed(range(MAX_LOOKS)):
        run = await runs.get(name)
        if run is not None:
            key.require_channels(run.options.channels)
            if generation is not None and generation != run.generation:
                raise stale(run, generation)
        found = 0 if run is None else run.generation
        try:
            return await change(found)
        except UnknownRun:
            if not found or not looks_left:
                raise
        except RunConflict as exc:
            if exc.reason is not ConflictReason.STALE or not looks_left:
                raise
    raise AssertionError("the last look raises or returns")
