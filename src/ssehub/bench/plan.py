"""The plan of a load test: how many subscribers, which events, and who should receive which of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SSEHubError


class BenchError(SSEHubError):
    """The plan cannot be carried out: the hub does not respond, or refuses a request."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One load test.

    Subscribers are spread evenly over the audiences, and so are the events of each publisher. `rate` is in events per
    second, None for as fast as the hub responds; `size` is in bytes of data per event.
    """

    url: str
    control_url: str
    subscribers: int
    events: int
    rate: float | None = None
    publishers: int = 1
    batch: int = 1
    size: int = 100
    users: int = 1
    channels: int = 1
    processes: int = 1
    server_pid: int | None = None
    control_key: str | None = None
    body: str = "json"
    patience_seconds: float = 10.0

    @property
    def audience_count(self) -> int:
        return self.channels * self.users

    @property
    def audiences(self) -> list[tuple[str, str]]:
        """The channel and the user of each audience."""
        return [
            (f"bench-{number % self.channels}", f"user-{number // self.channels}")
            for number in range(self.audience_count)
        ]

    @property
    def expected_deliveries(self) -> int:
        """The number of events that all subscribers together should receive."""
        share, extra = divmod(self.subscribers, self.audience_count)
        return sum(self.events_for(audience) * (share + (audience < extra)) for audience in range(self.audience_count))

    def events_from(self, publisher: int) -> int:
        """Return how many events `publisher` publishes."""
        return self.events // self.publishers + (publisher < self.events % self.publishers)

    def events_for(self, audience: int) -> int:
        """Return how many events each subscriber in `audience` should receive."""
        return sum(
            len(range(audience, self.events_from(publisher), self.audience_count))
            for publisher in range(self.publishers)
        )
