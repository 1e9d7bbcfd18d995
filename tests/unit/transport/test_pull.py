"""What a pull takes for an event, and where it lets the server send events."""

from __future__ import annotations

from busmicro import Client
from busmicro.transport import Pull
from tests.unit.transport.leaping import leaping

ACK = b"$JS.ACK.ORDERS.billing.1.17.42.1767225600123456789.5"


async def _pull(client: Client, came: list[bytes]) -> Pull:
    return Pull(
        client.bus.transport,
        client.bus.replies.inbox,
        "ORDERS",
        "billing",
        on_event=lambda _subject, reply, _header, _payload: came.append(reply),
        on_gone=lambda _reason: None,
        room=lambda: 10,
    )


def test_only_what_says_how_to_acknowledge_it_is_an_event():
    """A stranger who guesses an inbox cannot have a node publish its word where he likes."""

    async def run() -> None:
        came: list[bytes] = []
        async with Client("memory://pull") as stranger, Client("memory://pull") as client:
            pull = await _pull(client, came)
            inbox = pull.start().subject.encode()
            await client.bus.transport.barrier()

            for reply in (b"$JS.API.STREAM.DELETE.ORDERS", ACK, b"$JS.ACK.OTHER.c.1.1.1.1.1"):
                stranger.bus.transport.publish(inbox, b"{}", reply)
            await stranger.bus.transport.barrier()
            await client.bus.transport.barrier()
            pull.stop()

        assert came == [ACK]

    leaping(run())


def test_requests_of_a_lost_connection_bring_nothing_any_more():
    """After a reconnect events come to another inbox, so that no old request adds to the new."""

    async def run() -> None:
        inboxes: list[bytes] = []
        async with Client("memory://pull") as server, Client("memory://pull") as client:
            server.bus.transport.subscribe(
                "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing",
                lambda _subject, reply, _header, _payload: inboxes.append(reply),
            )
            await server.bus.transport.barrier()
            pull = await _pull(client, [])
            pull.start()
            pull.on_disconnected()
            pull.on_connected()
            await client.bus.transport.barrier()
            await server.bus.transport.barrier()
            pull.stop()

        assert len(set(inboxes)) == 2

    leaping(run())
