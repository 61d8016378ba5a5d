"""The command `revoke` in the log: which streams it ends, which tokens it refuses, and when it is forgotten."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fakes import FakeSink
from hubs import engine_of, join, manual_hub, publish
from ssehub.brokers.memory import MemoryBroker
from ssehub.errors import ConfigError, InvalidEvent, TokenError
from ssehub.fanout.sinks import Chunk
from ssehub.hub import Hub
from ssehub.position import Position
from ssehub.revocations import EXPIRY_MARGIN_SECONDS, Revocation
from ssehub.testing import ManualClock, ManualHub

pytestmark = pytest.mark.anyio

NOW = 1_750_000_000.0
"""Where the clock of a ManualHub stands at first."""


def retry_of(sink: FakeSink) -> int:
    found = re.findall(r"^event: stream-revoked\n(?:.*\n)*?retry: (\d+)$", sink.text, re.MULTILINE)
    return int(found[-1])


async def test_revoked_stream_ends_after_everything_published_before_and_soon_comes_back_to_be_refused() -> None:
    async with manual_hub() as hub:
        (_, alex), (_, kim) = join(hub, "alex", iat=NOW), join(hub, "kim", iat=NOW)

        await publish(hub, "before")
        await hub.revoke(user_id="alex")
        await publish(hub, "after")
        await hub.flush()

        assert alex.data() == ["before", "{}"] and 1_000 <= retry_of(alex) <= 3_100
        assert alex.is_closed and not alex.is_aborted and alex.cut_after is None, "a clean end"
        assert kim.data() == ["before", "after"]
        assert hub.statistics.endings["revoked"] == 1 and hub.statistics.revocations == 1
        with pytest.raises(TokenError) as refused:
            join(hub, "alex", iat=NOW)
        assert refused.value.reason == "revoked"


STREAMS: dict[str, dict[str, Any]] = {
    "alex": {"iss": "i", "sub": "1", "sid": "a", "jti": "A"},
    "alex elsewhere": {"iss": "i", "sub": "1", "sid": "b", "jti": "B"},
    "alex without sid": {"iss": "i", "sub": "1", "jti": "C"},
    "alex of another issuer": {"iss": "j", "sub": "1", "sid": "a", "jti": "D"},
    "kim": {"iss": "i", "sub": "2", "sid": "c", "jti": "E"},
    "host": {},
}


@pytest.mark.parametrize(
    ("revocation", "ended"),
    [
        (Revocation(jti="B"), ["alex elsewhere"]),
        (Revocation(jti="nothing"), []),
        (Revocation(user_id="kim", issued_before=1), ["kim"]),
        (Revocation(user_id="nobody", issued_before=1), []),
        (Revocation(sid="a"), ["alex", "alex of another issuer"]),
        (Revocation(sid="a", iss="i"), ["alex"]),
        (Revocation(sub="1", iss="i", issued_before=1), ["alex", "alex elsewhere", "alex without sid"]),
        (Revocation(sub="1", iss="i", without_sid=True, issued_before=1), ["alex without sid"]),
        (Revocation(everyone=True, issued_before=1), list(STREAMS)),
    ],
    ids=lambda value: value.key if isinstance(value, Revocation) else "",
)
@pytest.mark.parametrize("others", [0, 1], ids=["alone", "with-another"])
@pytest.mark.parametrize("is_told", [True, False], ids=["by-the-log", "beside-the-log"])
async def test_revocation_ends_the_streams_that_it_names(
    revocation: Revocation, ended: list[str], others: int, is_told: bool
) -> None:
    async with manual_hub() as hub:
        sinks = {name: join(hub, name.split()[0], iat=NOW, **token)[1] for name, token in STREAMS.items()}
        revocations = [revocation, *[Revocation(user_id="nobody", issued_before=1), Revocation(jti="no")][:others]]

        if is_told:
            await hub.revoke_all(revocations)
        else:  # as after a gap of the log, when the broker has read its table
            await engine_of(hub).endings.revoke(revocations)
        await hub.flush()

        assert [name for name, sink in sinks.items() if sink.is_closed] == ended


async def test_user_is_found_on_all_channels_whether_there_are_few_or_many() -> None:
    for channels in (["chat"], [f"c{number}" for number in range(50)]):
        async with manual_hub() as hub:
            _, several = join(hub, "alex", *channels)
            sinks = [join(hub, "alex", channel)[1] for channel in channels]
            _, kim = join(hub, "kim", *channels)

            await hub.revoke(user_id="alex")
            await hub.flush()

            assert several.is_closed and all(sink.is_closed for sink in sinks) and not kim.is_closed


async def test_streams_end_whenever_their_tokens_were_issued_and_later_streams_with_newer_tokens_stay() -> None:
    async with manual_hub() as hub:
        sinks = [join(hub, iat=iat)[1] for iat in (0, NOW - 1_000, NOW + 4)]

        await hub.revoke(user_id="alex", issued_before=NOW - 500)
        _, newer = join(hub, iat=NOW - 494.9)  # before the command has been carried out
        with pytest.raises(TokenError):
            join(hub, iat=NOW - 495)
        with pytest.raises(TokenError):
            join(hub, iat=0)
        await publish(hub, "after")
        await hub.flush()

        assert all(sink.is_closed for sink in sinks)
        assert newer.data() == ["after"] and not newer.is_closed


async def test_user_who_logs_in_again_within_the_leeway_is_refused_once_more() -> None:
    async with manual_hub(leeway_seconds=2) as hub:
        await hub.revoke(user_id="alex")

        with pytest.raises(TokenError):
            join(hub, iat=NOW + 2)
        assert join(hub, iat=NOW + 2.001)[1].text


async def test_streams_end_in_log_order_and_slices_and_many_clients_come_back_spread() -> None:
    async with manual_hub() as hub:
        sinks = [join(hub, f"user-{number}", jti=f"{number}")[1] for number in range(2_500)]

        await publish(hub, "1")
        await hub.revoke(jti="7")
        await publish(hub, "2")
        await hub.revoke(everyone=True)
        await publish(hub, "3")
        await hub.flush()

        assert all(sink.is_closed for sink in sinks)
        assert sinks[7].data() == ["1", "{}"] and sinks[8].data() == ["1", "2", "{}"]
        retries = [retry_of(sink) for sink in sinks]
        assert min(retries) >= 1_000
        assert max(retries) >= 1_000 + 2_500 / 500 * 1_000, "not before the hub can take them"


async def test_revocation_goes_on_past_streams_that_have_left_or_that_raise() -> None:
    class Broken(FakeSink):
        def write(self, chunk: Chunk) -> None:
            if b"stream-revoked" in chunk.data:
                raise RuntimeError("the transport is closed")

    async with manual_hub() as hub:
        (_, gone), (_, broken), (_, sink) = join(hub), join(hub, sink=Broken()), join(hub)

        await hub.revoke(everyone=True)
        gone.lose()
        await hub.flush()

        assert broken.is_aborted and sink.is_closed
        assert hub.statistics.endings["revoked"] == 1 and hub.statistics.subscribers == 0


async def test_stream_that_is_still_replaying_ends_before_what_follows_the_revocation() -> None:
    async with manual_hub(round_bytes=500) as hub:
        (first, *_) = await publish(hub, *[str(number) for number in range(50)])
        _, sink = join(hub, cursor=first, jti="a")

        await hub.revoke(jti="a")
        await publish(hub, "secret")
        await hub.flush()

        assert sink.is_closed and "secret" not in sink.data()


async def test_revocation_is_not_replayed_and_taking_it_back_lets_tokens_in_again() -> None:
    async with manual_hub() as hub:
        (position,) = await publish(hub, "1")
        revoked_at = await hub.revoke(jti="a")
        await publish(hub, "2")

        assert Position.parse(revoked_at) is not None
        assert join(hub, cursor=position, jti="b")[1].data() == ["2"]
        with pytest.raises(TokenError):
            join(hub, jti="a")
        assert await hub.take_back(jti="a") is not None
        assert await hub.take_back(jti="a") is None
        assert join(hub, jti="a")[1].text and list(hub.revocations) == []


@pytest.mark.parametrize(
    "whose",
    [
        {"jti": "a"},
        {"user_id": "a"},
        {"sid": "a"},
        {"sid": "a", "issuer": "i"},
        {"issuer": "i", "subject": "a"},
        {"everyone": True},
    ],
    ids=str,
)
async def test_what_is_revoked_by_name_is_taken_back_by_the_same_name(whose: dict[str, Any]) -> None:
    async with manual_hub() as hub:
        await hub.revoke(**whose)
        assert len(hub.revocations) == 1
        (one,) = hub.revocations
        assert one.issued_before in (None, NOW)

        assert await hub.take_back(**whose) is not None
        assert len(hub.revocations) == 0


async def test_revocation_that_makes_no_sense_changes_nothing() -> None:
    async with manual_hub() as hub:
        head = await hub.broker.head()
        with pytest.raises(InvalidEvent, match="nothing given"):
            await hub.revoke()
        with pytest.raises(InvalidEvent, match="jti and sid"):
            await hub.revoke(jti="a", sid="b")
        with pytest.raises(InvalidEvent, match="at least one"):
            await hub.revoke_all([])
        with pytest.raises(InvalidEvent, match="nothing given"):
            await hub.take_back()

        assert await hub.broker.head() == head and len(hub.revocations) == 0


async def test_login_of_the_host_ends_with_its_user_and_is_asked_again() -> None:
    async with manual_hub() as hub:
        (_, alex), (_, kim) = join(hub, "alex"), join(hub, "kim", sid="session")

        await hub.revoke(user_id="alex")
        await hub.revoke(sid="session")
        await hub.flush()

        assert alex.is_closed and kim.is_closed
        assert join(hub, "alex")[1].text
        with pytest.raises(TokenError):
            join(hub, "kim", sid="session")


async def test_memory_broker_keeps_revocations_while_the_hub_is_closed() -> None:
    hub = ManualHub()
    async with hub:
        await hub.revoke(jti="a")
    async with hub:
        with pytest.raises(TokenError):
            join(hub, jti="a")


async def test_memory_broker_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    async with manual_hub() as hub:
        await hub.revoke(jti="a")
        await hub.revoke(jti="b")

    assert [record.message for record in caplog.records if "revocations" in record.message] == [
        "revocations end with this process: use a broker that stores them, such as sqlite:///"
    ]


async def test_revocations_that_have_run_out_leave_the_hub_and_no_others() -> None:
    async with manual_hub() as hub:
        for jti, expires_at in (("early", NOW + 10), ("late", NOW + 500), ("forever", None)):
            await hub.revoke(jti=jti, expires_at=expires_at)

        await hub.pass_seconds(EXPIRY_MARGIN_SECONDS)
        assert hub.statistics.revocations == 3
        await hub.pass_seconds(100)

        assert [one.jti for one in hub.revocations] == ["late", "forever"]


async def test_clock_that_was_set_forward_makes_the_hub_forget_no_revocation() -> None:
    log = ManualClock()
    async with manual_hub(broker=MemoryBroker(now=lambda: log.wall)) as hub:
        await hub.revoke(jti="a", expires_at=NOW + 10)

        await hub.pass_seconds(2 * EXPIRY_MARGIN_SECONDS)
        assert hub.statistics.revocations == 1
        log.pass_seconds(2 * EXPIRY_MARGIN_SECONDS)
        await hub.pass_seconds(100)

        assert hub.statistics.revocations == 0


def test_leeway_out_of_bounds_is_refused() -> None:
    with pytest.raises(ConfigError, match="leeway_seconds 601"):
        Hub(leeway_seconds=601)
