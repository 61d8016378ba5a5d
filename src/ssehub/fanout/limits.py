"""Limits on streams: how many there may be of one user, one address and one channel, and how many may be opened.

A stream counts from `add` to `remove`, which the registry calls when the stream ends, for whatever reason. So does a
client that waits for a run, from `add_wait` to `remove_wait`, but on no channel, and not for the rates. The rates
are token buckets that hold `BURST_SECONDS` of their rate. An address is what `proxies.limit_key` returns: it stands for
one IPv4 address, or for one IPv6 network of 64 bits, as much as one customer of a provider has.
"""

from __future__ import annotations

from collections.abc import Callable

from ..buckets import Buckets, TokenBucket
from ..claims import Claims
from ..errors import StreamRefused
from ..grant import prefix_of
from ..report import RAISE, Report
from ..settings import StreamLimits
from .index import Index, Topic
from .refusals import Refusal
from .subscriber import Subscriber

BURST_SECONDS = 10.0
"""The buckets hold as many streams as their rate allows in this time, and at least one."""
MAX_ADDRESSES = 50_000
"""Most addresses whose rate is remembered. Beyond that the one that was seen least recently is forgotten."""


OF_ONE_CLIENT = frozenset((Refusal.USER, Refusal.ADDRESS, Refusal.ADDRESS_RATE, Refusal.CHANNEL))
"""The refusals that say nothing about how many streams the hub can take."""


class StreamCounts:
    """Counts the streams that the limits are about, and decides whether there may be another one.

    `monotonic` gives seconds.
    """

    def __init__(self, limits: StreamLimits, index: Index, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._index = index
        self._replaces = limits.user_limit_policy == "replace"
        self._addresses: dict[Subscriber, str] = {}
        self._by_address: dict[str, int] = {}
        self._by_user: dict[str, dict[Subscriber, None]] = {}
        """The streams of each user, the oldest first."""
        self._waits_by_user: dict[str, int] = {}
        rate, address_rate = limits.max_new_streams_per_second, limits.max_new_streams_per_second_per_address
        self._rate = TokenBucket(rate, BURST_SECONDS, monotonic) if rate is not None else None
        self._address_rates = (
            Buckets(address_rate, BURST_SECONDS, monotonic, MAX_ADDRESSES) if address_rate is not None else None
        )

    def __len__(self) -> int:
        """Return how many users and addresses are remembered."""
        rates = 0 if self._address_rates is None else len(self._address_rates)
        return len(self._by_user) + len(self._waits_by_user) + len(self._by_address) + rates

    def admit(self, claims: Claims, address: str, *, watches: bool = False) -> Subscriber | None:
        """Count a stream as opened, for the rates; return the stream that it replaces, if any.

        `watches` says that it is one of a run: those do not count on their channels.

        Raises StreamRefused if there may not be another one, which then does not count.
        """
        replaced = self.check(claims, address, RAISE, watches=watches)
        # Only now: what may not be opened must not take from the rate of all others.
        if self._address_rates is not None:
            self._address_rates.spend(address)
        if self._rate is not None:
            self._rate.spend()
        return replaced

    def check(self, claims: Claims, address: str | None, report: Report, *, watches: bool = False) -> Subscriber | None:
        """Report each limit that another stream would exceed, and return the stream that it would replace, if any.

        Without an `address`, the limits of addresses are left out. Nothing is counted.
        """
        replaced = self._replaced(claims.user_id, report)
        if address is not None:
            self._check_address(address, replaced, report)
        if not watches:
            self._check_topics(claims, replaced, report)
        if address is not None and self._address_rates is not None and self._address_rates.wait_seconds(address):
            message = "the address is at max_new_streams_per_second_per_address"
            report.fail(StreamRefused(Refusal.ADDRESS_RATE, message))
        if self._rate is not None and self._rate.wait_seconds():
            report.fail(StreamRefused(Refusal.RATE, "max_new_streams_per_second is reached"))
        return replaced

    def _replaced(self, user_id: str, report: Report) -> Subscriber | None:
        """Return the oldest stream of a user who has as many as allowed; by another policy, report that."""
        most = self._limits.max_streams_per_user
        if most is None:
            return None
        streams = self._by_user.get(user_id, {})
        if not self._replaces:
            self._check_user(user_id, len(streams) + self._waits_by_user.get(user_id, 0), report)
            return None
        return next(iter(streams)) if len(streams) >= most else None

    def _check_user(self, user_id: str, count: int, report: Report) -> None:
        most = self._limits.max_streams_per_user
        if most is not None and count >= most:
            report.fail(StreamRefused(Refusal.USER, f"user {user_id!r} is at max_streams_per_user ({most})"))

    def _check_address(self, address: str, replaced: Subscriber | None, report: Report) -> None:
        most = self._limits.max_streams_per_address
        if most is None:
            return
        leaving = replaced is not None and self._addresses[replaced] == address
        if self._by_address.get(address, 0) - leaving >= most:
            report.fail(StreamRefused(Refusal.ADDRESS, f"the address is at max_streams_per_address ({most})"))

    def _check_topics(self, claims: Claims, replaced: Subscriber | None, report: Report) -> None:
        """A pattern counts as one more channel, however many channels it stands for."""
        most = self._limits.max_streams_per_channel
        if most is None:
            return
        leaving = set(self._index.topics_of(replaced)) if replaced is not None else set[Topic]()
        channels, prefixes = self._index.channels, self._index.prefixes
        for channel in claims.channels:
            topic = channels.get(channel)
            if topic is not None and topic.count - (topic in leaving) >= most:
                message = f"channel {channel!r} is at max_streams_per_channel ({most})"
                report.fail(StreamRefused(Refusal.CHANNEL, message))
        for pattern in claims.patterns:
            topic = prefixes.get(prefix_of(pattern))
            if topic is not None and topic.count - (topic in leaving) >= most:
                message = f"pattern {pattern!r} is at max_streams_per_channel ({most})"
                report.fail(StreamRefused(Refusal.CHANNEL, message))

    def add(self, subscriber: Subscriber, address: str) -> None:
        """Count an open stream."""
        if self._limits.max_streams_per_address is not None:
            self._addresses[subscriber] = address
            self._enter_address(address)
        if self._limits.max_streams_per_user is not None:
            self._by_user.setdefault(subscriber.user_id, {})[subscriber] = None

    def remove(self, subscriber: Subscriber) -> None:
        """Stop counting `subscriber`. A stream that was not counted is ignored."""
        address = self._addresses.pop(subscriber, None)
        if address is not None:
            self._leave_address(address)
        streams = self._by_user.get(subscriber.user_id)
        if streams is not None and streams.pop(subscriber, False) is None and not streams:
            del self._by_user[subscriber.user_id]

    def add_wait(self, user_id: str, address: str) -> None:
        """Count a client that waits for a run as a stream. Raises StreamRefused if there may not be another one.

        It replaces no stream: only the stream that it waits for does. So where streams are replaced, a user may have as
        many streams as allowed and as many clients that wait.
        """
        waits = self._waits_by_user.get(user_id, 0)
        streams = 0 if self._replaces else len(self._by_user.get(user_id, ()))
        self._check_user(user_id, streams + waits, RAISE)
        self._check_address(address, None, RAISE)
        if self._limits.max_streams_per_user is not None:
            self._waits_by_user[user_id] = waits + 1
        if self._limits.max_streams_per_address is not None:
            self._enter_address(address)

    def remove_wait(self, user_id: str, address: str) -> None:
        """Stop counting a client that `add_wait` has counted."""
        if self._limits.max_streams_per_user is not None:
            _decrease(self._waits_by_user, user_id)
        if self._limits.max_streams_per_address is not None:
            self._leave_address(address)

    def _enter_address(self, address: str) -> None:
        self._by_address[address] = self._by_address.get(address, 0) + 1

    def _leave_address(self, address: str) -> None:
        _decrease(self._by_address, address)


def _decrease(counts: dict[str, int], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
