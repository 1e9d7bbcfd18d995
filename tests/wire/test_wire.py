"""The wire, to the letter: what docs/protocol.md promises to other languages."""

from __future__ import annotations

import asyncio
import json
import re

import nats
import pytest
from nats.aio.msg import Msg

from busmicro import (
    CallError,
    Client,
    Code,
    Disconnected,
    Internal,
    NotFound,
    ResourceExhausted,
    Service,
    Unavailable,
)
from busmicro.rpc.wire import decode_error, encode_error


@pytest.fixture
async def raw(busmicro_server):
    """A plain NATS connection, as another language would have one."""
    connection = await nats.connect(busmicro_server.url)
    yield connection
    await connection.close()


async def test_request_is_the_message_and_one_header(raw, busmicro_client, settled):
    """A plain call is its JSON, a time-out and nothing else, answered on the caller's inbox."""
    arrived = await raw.subscribe("rpc.greeter.hello")
    await settled(raw)
    call = asyncio.get_running_loop().create_task(
        busmicro_client.call("greeter", "hello", {"name": "John"}, timeout=2.0)
    )

    request = await arrived.next_msg(timeout=2)
    await request.respond(b'{"greeting":"Hello John"}')

    assert request.data == b'{"name":"John"}'
    assert list(request.headers) == ["Bus-Timeout"]
    assert 1900 <= int(request.headers["Bus-Timeout"]) <= 2000
    assert re.fullmatch(r"_INBOX\.[0-9a-f]{16}\.[0-9a-f]+", request.reply)
    assert await call == {"greeting": "Hello John"}


async def test_content_type_and_caller_are_sent_when_they_say_something(
    raw, busmicro_start, settled
):
    """Bytes declare their content type, and a service that calls says its name."""
    arrived = await raw.subscribe("rpc.store.put")
    await settled(raw)
    service = await busmicro_start(Service("uploader"))
    call = asyncio.get_running_loop().create_task(service.client.call("store", "put", b"\x00\xff"))

    request = await arrived.next_msg(timeout=2)
    await request.respond(b"")

    await call
    assert request.data == b"\x00\xff"
    assert request.headers["Content-Type"] == "application/octet-stream"
    assert request.headers["Bus-Caller"] == "uploader"


async def test_cancel_is_the_reply_subject_on_the_services_cancel_subject(
    raw, busmicro_client, settled
):
    """Giving up publishes the call's reply subject on cancel.<service>, once."""
    arrived = await raw.subscribe("rpc.slow.wait")
    cancels = await raw.subscribe("cancel.slow")
    await settled(raw)
    call = asyncio.get_running_loop().create_task(busmicro_client.call("slow", "wait"))
    request = await arrived.next_msg(timeout=2)

    call.cancel()
    cancel = await cancels.next_msg(timeout=2)

    assert cancel.data.decode() == request.reply
    assert not cancel.reply
    assert cancels.pending_msgs == 0


async def test_error_reply_has_the_headers_of_adr_32_and_a_json_body(raw, busmicro_start):
    """A failure is readable with any NATS client: number, text, code name, and details."""
    service = Service("users")

    @service.rpc
    async def find() -> None:
        raise NotFound("no «bob» 100%", details=[{"field": "name"}])

    await busmicro_start(service)

    reply = await raw.request("rpc.users.find", b"", timeout=2)

    assert dict(reply.headers) == {
        "Nats-Service-Error-Code": "404",
        "Nats-Service-Error": "no %C2%ABbob%C2%BB 100%25",
        "Bus-Status": "not_found",
    }
    assert json.loads(reply.data) == {
        "code": "not_found",
        "message": "no «bob» 100%",
        "details": [{"field": "name"}],
        "origin": "users",
    }


async def test_refusal_that_did_not_run_says_so_and_is_tried_again(raw, busmicro_client, settled):
    """`Bus-Not-Run: 1` makes the caller try again, after the pause that was asked."""
    requests: list[Msg] = []

    async def refuse_twice(request: Msg) -> None:
        requests.append(request)
        if len(requests) < 3:
            headers = {
                "Nats-Service-Error-Code": "429",
                "Bus-Status": "resource_exhausted",
                "Bus-Not-Run": "1",
                "Bus-Retry-After": "20",
            }
            await raw.publish(request.reply, b"{}", headers=headers)
        else:
            await request.respond(b'"done"')

    await raw.subscribe("rpc.busy.work", cb=refuse_twice)
    await settled(raw)

    assert await busmicro_client.call("busy", "work", 1) == "done"
    assert [r.headers.get("Bus-Attempt") for r in requests] == [None, "2", "3"]


async def test_refusal_that_may_have_run_is_not_tried_again(raw, busmicro_client, settled):
    """Without `Bus-Not-Run` an unavailable call is the caller's to repeat."""
    count = 0

    async def fail(request: Msg) -> None:
        nonlocal count
        count += 1
        headers = {"Nats-Service-Error-Code": "503", "Nats-Service-Error": "broken"}
        await raw.publish(request.reply, b"", headers=headers)

    await raw.subscribe("rpc.broken.work", cb=fail)
    await settled(raw)

    with pytest.raises(Unavailable, match="broken"):
        await busmicro_client.call("broken", "work")
    assert count == 1


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_every_code_survives_the_wire(code):
    """Each of the sixteen codes arrives as its own class with all it carries."""
    sent = CallError.of(code, "why", details=[1, {"a": None}], origin="deep")
    sent.retry_after, sent.not_run = 1.5, True

    got = decode_error(*encode_error(sent, "shallow"), "asked")

    assert type(got) is type(sent)
    assert (got.code, got.message, got.details, got.origin) == (
        code,
        "why",
        [1, {"a": None}],
        "deep",
    )
    assert (got.retry_after, got.not_run) == (1.5, True)


def test_error_details_too_long_for_a_reply_are_left_out():
    """An error always fits: 64 KiB of details are dropped, code and message arrive."""
    sent = Internal("x" * 100_000, details=["y" * 100_000])

    header, payload = encode_error(sent, "s")
    got = decode_error(header, payload, "s")

    assert len(header) + len(payload) < 70_000
    assert got.code is Code.INTERNAL
    assert got.message.startswith("xxx")
    assert got.details == []


@pytest.mark.parametrize(
    ("header", "payload", "code", "message"),
    [
        (b"Nats-Service-Error-Code: 404\r\nNats-Service-Error: gone", b"", Code.NOT_FOUND, "gone"),
        (b"Nats-Service-Error-Code: 500\r\nNats-Service-Error: x", b"text", Code.INTERNAL, "x"),
        (
            b"Nats-Service-Error-Code: 418\r\nNats-Service-Error: tea",
            b"",
            Code.INVALID_ARGUMENT,
            "tea",
        ),
        (b"Nats-Service-Error-Code: abc\r\nNats-Service-Error: x", b"[1]", Code.UNKNOWN, "x"),
        (
            b"nats-service-error-code: 429\r\nNats-Service-Error: x",
            b"\xff",
            Code.RESOURCE_EXHAUSTED,
            "x",
        ),
        (b"Nats-Service-Error: x\r\nBus-Retry-After: -1", b'{"details": 5}', Code.UNKNOWN, "x"),
    ],
)
def test_foreign_errors_are_understood(header, payload, code, message):
    """Errors of other frameworks become the nearest code, whatever their body is."""
    error = decode_error(b"NATS/1.0\r\n" + header + b"\r\n\r\n", payload, "asked")

    assert (error.code, error.message, error.origin) == (code, message, "asked")


async def test_call_while_disconnected_fails_at_once(server):
    """A call made while NATS is away ends as Disconnected, not run, long before its time-out."""
    async with Client(server.url) as client:
        server.kill()
        async with asyncio.timeout(2):
            while client.bus.transport.connected:
                await asyncio.sleep(0.001)
        began = asyncio.get_running_loop().time()

        with pytest.raises(Disconnected) as caught:
            await client.call("any", "thing")

        assert caught.value.not_run
        assert asyncio.get_running_loop().time() - began < 0.5


async def test_full_service_says_when_to_come_back(raw, busmicro_server):
    """A refused request carries the code, the pause and that it did not run."""
    from busmicro import Settings

    settings = Settings(nats_url=busmicro_server.url, max_running=1)
    service = Service("one", settings=settings)
    hold = asyncio.Event()

    @service.rpc
    async def work() -> None:
        await hold.wait()

    async with service:
        inbox = raw.new_inbox()
        first = await raw.subscribe(inbox)
        await raw.publish("rpc.one.work", b"", reply=inbox)
        reply = await raw.request("rpc.one.work", b"", timeout=2)
        hold.set()
        await first.next_msg(timeout=2)

    assert reply.headers["Bus-Status"] == "resource_exhausted"
    assert reply.headers["Bus-Not-Run"] == "1"
    assert int(reply.headers["Bus-Retry-After"]) > 0
    error = decode_error(b"NATS/1.0\r\nBus-Status: resource_exhausted\r\n\r\n", reply.data, "one")
    assert isinstance(error, ResourceExhausted)
