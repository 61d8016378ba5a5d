"""Two experiments with single clients, besides the table."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .catalogue import BROWSER, Client, find
from .link import Cut, Link
from .scenarios import CONNECT_SECONDS, HEAR_SECONDS, RETURN_SECONDS, Hubs, Outcome, Run, start_hub
from .verdict import FINE

BREAKS = 40
EVENT_BYTES = 200_000
BYTES_PER_SECOND = 1_000_000.0


def random_breaks(run: Run, breaks: int = BREAKS, seed: int = 14) -> Outcome:
    """A link of 1 MB/s under events of 200 KB, which breaks at a random byte again and again."""
    numbers = random.Random(seed)
    with (
        start_hub() as hub,
        Link(hub.port, bytes_per_second=BYTES_PER_SECOND) as link,
        run.start(run.url(hub, link.url), line_bytes=2 * EVENT_BYTES) as program,
    ):
        last = ""
        for number in range(breaks):
            seconds = RETURN_SECONDS if number else CONNECT_SECONDS
            if not program.wait(lambda number=number: link.streams > number, seconds):  # type: ignore[misc]  # a lambda with a default
                return run.outcome(program, returned=False)  # never returns
            last = run.publish(hub, 3, text="x" * EVENT_BYTES)
            link.cut = _after(link.forwarded + numbers.randrange(3 * EVENT_BYTES))
            program.wait(lambda: link.cut is None, 30)
            assert link.cut is None, f"the link has forwarded too little to break: {link.forwarded}"
        returned = program.wait(lambda: link.streams > breaks, RETURN_SECONDS)
        program.wait(lambda: program.has_heard(last), 90)
        outcome = run.outcome(program, returned=returned)
    text = f"{breaks} breaks, {len(run.sent)} events: {outcome.text}"
    return Outcome(text, returned and "lost" not in outcome.text, outcome.details)


def _after(count: int) -> Cut:
    return lambda response, forwarded: count if len(response) >= count else None


def json_page(run: Run) -> Outcome:
    """A page that parses every message as JSON, while the hub sends frames of its own: it must not fail at these."""
    hub = run.hubs.get("beating")
    with Link(hub.port) as link, run.start(run.url(hub, link.url)) as program:
        assert program.wait(lambda: link.streams, CONNECT_SECONDS), f"the page has not connected: {program.errors}"
        for _ in range(6):
            last = run.publish(hub, 1)
            hub.emit(channel="another", data="moves the position")
            time.sleep(1.2)
        program.wait(lambda: program.has_heard(last), HEAR_SECONDS)
        outcome = run.outcome(program)
        heard = sum(program.has_heard(event.data) for event in run.sent)
        text = f"{len(link.requests)} connection{'s' * (len(link.requests) != 1)}, {heard} of {len(run.sent)} events"
        is_fine = outcome.text == FINE and len(link.requests) == 1
        return Outcome(text, is_fine, outcome.details)


def _json_client() -> Client:
    return Client(
        name="a page with @microsoft/fetch-event-source that parses every message as JSON",
        language=BROWSER,
        package="@microsoft/fetch-event-source",
        program="fetch-event-source-json.html",
        reconnects="library",
        query="",
        configure="",
        notes={},
    )


EXPERIMENTS: dict[str, tuple[Callable[[], Client], Callable[[Run], Outcome]]] = {
    "random breaks, @microsoft/fetch-event-source": (lambda: find("@microsoft/fetch-event-source"), random_breaks),
    "random breaks, r3labs/sse": (lambda: find("r3labs/sse, in a loop"), random_breaks),
    "JSON page": (_json_client, json_page),
}


def run_experiment(name: str, hubs: Hubs) -> Outcome:
    client, experiment = EXPERIMENTS[name]
    return experiment(Run(client(), hubs))
