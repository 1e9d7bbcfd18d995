"""What strangers on the bus may say: it makes nobody publish where they could not by themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro import Client, Internal, Service, Settings, Unavailable
from busmicro.registry.srv import _Info, _read_endpoint, _records
from busmicro.transport import MemoryTransport
from tests.unit.transport.leaping import leaping

HEARD = list[tuple[bytes, bytes]]
OPENING = b"NATS/1.0\r\nBus-Stream: 256 100000\r\nContent-Type: application/octet-stream\r\n\r\n"


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    """A bus of the test's own."""
    return Settings(nats_url=f"memory://{abs(hash(request.node.name))}")


@pytest.fixture
async def stranger(settings: Settings) -> AsyncIterator[MemoryTransport]:
    """Somebody else on the bus."""
    transport = MemoryTransport(settings)
    await transport.connect()
    yield transport
    await transport.close()


def hearing(stranger: MemoryTransport, pattern: str) -> HEARD:
    """Hear what is published there."""
    heard: HEARD = []
    stranger.subscribe(
        pattern, lambda subject, _reply, _header, payload: heard.append((subject, payload))
    )
    return heard


@pytest.mark.parametrize(
    "subject",
    ["$JS.API.STREAM.DELETE.ORDERS", "_INBOX.a.b", "a.b 0\\r\\n\\r\\nPUB c 0", "a.*", "a..b"],
)
async def test_caller_is_not_sent_where_no_service_is(
    settings: Settings, stranger: MemoryTransport, subject: str
) -> None:
    """Where a stranger answers for a service, its word on where that listens is not believed."""
    info = (
        b'{"name":"shop","id":"x","endpoints":[{"name":"buy","subject":"%b"}]}' % subject.encode()
    )
    places = ("$JS.API.STREAM.>", "_INBOX.a.b", "a.>", "a.b 0", "c")
    heard = [hearing(stranger, place) for place in places]
    asked: HEARD = []

    def on_lookup(_subject: bytes, reply: bytes, _header: bytes, payload: bytes) -> None:
        asked.append((reply, payload))
        stranger.publish(reply, info)

    stranger.subscribe("$SRV.INFO.shop", on_lookup)
    await stranger.barrier()
    async with Client(settings=settings) as client:
        with pytest.raises(Unavailable, match="no node serves"):
            await client.call("shop", "buy", {"what": "x"})

    assert len(asked) == 1
    assert heard == [[]] * len(places)


async def test_frames_of_a_stream_are_not_published_into_another(
    settings: Settings, stranger: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream is not opened to an address below which JetStream would keep what is sent."""
    service = Service("chat", settings=settings)

    @service.rpc
    async def talk(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield b"an order that nobody placed"
        async for line in lines:
            yield line

    heard = hearing(stranger, "orders.>")
    async with service:
        service.bus.replies_allowed.protect(["orders.*"])
        with caplog.at_level(logging.WARNING):
            stranger.publish(b"rpc.chat.talk", b"", b"orders", OPENING)
            stranger.publish(b"rpc.chat.talk", b"", b"mine", OPENING)
            own = hearing(stranger, "mine.>")
            await stranger.barrier()
            await service.client.call("chat", "Debug.Health")
        stranger.publish(b"cancel.chat", b"mine")
        stats = await service.client.call("chat", "Debug.Stats")

    assert heard == []
    assert [where for where, _what in own][:2] == [b"mine.a", b"mine.d1"]
    assert stats["refused_replies"] == 1
    assert "must not publish" in caplog.text


def test_what_streams_keep_stays_reserved_while_nobody_can_be_asked(settings: Settings) -> None:
    """Where JetStream does not answer for a moment, no answer goes where streams were before."""

    async def run() -> HEARD:
        service, stranger = Service("chat", settings=settings), MemoryTransport(settings)
        await stranger.connect()
        heard = hearing(stranger, "orders.>")
        async with service:
            service.bus.replies_allowed.protect(["orders.*"])
            await asyncio.sleep(200.0)
            stranger.publish(b"rpc.chat.Debug.Health", b"", b"orders.placed")
            stranger.publish(b"rpc.chat.Debug.Health", b"", b"orders")
            await stranger.barrier()
            await service.client.call("chat", "Debug.Health")
        await stranger.close()
        return heard

    assert leaping(run()) == []


async def test_accept_that_allows_too_much_is_refused_without_a_fault(
    settings: Settings, stranger: MemoryTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """A node whose first word breaks the protocol ends the stream, and nothing else breaks."""

    def accept(_subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        stranger.publish(reply + b".a", b"9999999999 9999999999 0 0", b"_INBOX.n.1")

    stranger.subscribe("rpc.chat.talk", accept)
    await stranger.barrier()
    async with Client(settings=settings) as client:
        with pytest.raises(Internal, match="more credit"):
            async with client.stream("chat", "talk", sends=bytes, returns=bytes):
                pass  # never gets here

    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_caller_without_a_service_learns_that_nobody_is_there(settings: Settings) -> None:
    """The look-up itself is no failure."""
    async with Client(settings=settings) as client:
        with pytest.raises(Unavailable, match="no node serves"):
            await client.call("shop", "buy")


WORDS = st.text(st.characters(codec="utf-8"), max_size=10)
METADATA = st.dictionaries(
    st.sampled_from(
        [
            "busmicro.kind",
            "busmicro.timeout",
            "busmicro.request",
            "busmicro.reply",
            "busmicro.idempotent",
            "x",
        ]
    ),
    st.sampled_from(["NaN", "1e999", "-1", "²", "[" * 999, '"\\ud800"', "true", "{}", "both"])
    | WORDS,
)


@given(WORDS, WORDS.filter(bool), METADATA)
def test_any_endpoint_that_a_service_tells_of_can_be_read(
    name: str, subject: str, metadata: dict[str, str]
) -> None:
    """What other frameworks say of an endpoint is listed, and never fails the one who asks."""
    said = {"name": name, "subject": subject, "metadata": metadata}
    info = _Info.model_validate({"name": "svc", "id": "1", "endpoints": [said]})

    record = _read_endpoint((info.endpoints or [])[0])

    assert record.subject == subject
    assert record.timeout is None or record.timeout > 0
    assert _records([info])[0].descriptions["1"].endpoints == (record,) or "nan" in repr(record)
