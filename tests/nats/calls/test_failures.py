"""Failures reach the caller: as the same class, at once, and with nothing that is secret."""

from __future__ import annotations

import json
import time

import nats
import pytest

from busmicro import (
    Call,
    CallError,
    Client,
    Code,
    Internal,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    ResourceExhausted,
    Retry,
    Service,
    Unavailable,
    Unimplemented,
)
from tests.nats.calls.greeter import Point, greeter


async def test_handlers_error_arrives_as_the_same_class(busmicro_client, busmicro_start):
    """What a handler raises is what the caller catches: class, message, details and origin."""
    await busmicro_start(greeter())

    with pytest.raises(NotFound) as caught:
        await busmicro_client.call("greeter", "missing", {"name": "bob"})

    error = caught.value
    assert (error.message, error.details, error.origin) == (
        "no bob",
        [{"searched": "here"}],
        "greeter",
    )


async def test_unexpected_exception_is_internal_and_keeps_its_secrets(
    busmicro_client, busmicro_start, caplog
):
    """The caller gets an id; the log has that id beside the traceback."""
    await busmicro_start(greeter())

    with pytest.raises(Internal) as caught:
        await busmicro_client.call("greeter", "broken", {"name": "x"})

    assert "hunter2" not in str(caught.value)
    fault = caught.value.message.rpartition(" ")[2]
    assert any(fault in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("payload", "headers", "says"),
    [
        (b'{"name": ', None, "Invalid JSON"),
        (b'{"name": 42}', None, "name"),
        (b"{}", None, "name: Field required"),
        (b"\xff\xfe\x00", None, "Invalid JSON"),
        (b"", None, "Invalid JSON"),
        (b"a=b", {"Content-Type": "text/plain"}, "send application/json"),
        (b'{"name":"x"}', {"Content-Type": "application/protobuf"}, "send application/json"),
        (b"\xc1", {"Content-Type": "application/msgpack"}, "MessagePack"),
        (b'{"name":"x"}', {"Bus-Timeout": "soon"}, "is no number"),
    ],
)
async def test_bad_request_is_told_what_is_wrong(
    busmicro_server, busmicro_client, busmicro_start, payload, headers, says
):
    """Rubbish gets a coded answer at once, and the service lives."""
    await busmicro_start(greeter())
    raw = await nats.connect(busmicro_server.url)

    reply = await raw.request("rpc.greeter.hello", payload, timeout=1, headers=headers)

    await raw.close()
    assert reply.headers["Nats-Service-Error-Code"] == "400"
    assert reply.headers["Bus-Status"] == "invalid_argument"
    body = json.loads(reply.data)
    assert body["code"] == "invalid_argument"
    assert says in body["message"]
    assert body["origin"] == "greeter"
    assert await busmicro_client.call("greeter", "hello", {"name": "J"})


async def test_ten_mebibytes_are_refused_before_the_wire(busmicro_client, busmicro_start):
    """A message that the server would not take raises at once and the connection lives on."""
    await busmicro_start(greeter())

    with pytest.raises(PayloadTooLarge):
        await busmicro_client.call("greeter", "hello", {"name": "x" * 10 * 1024 * 1024})

    assert await busmicro_client.call("greeter", "hello", {"name": "J"})


async def test_reply_that_is_too_large_is_an_error_and_not_a_time_out(
    busmicro_client, busmicro_start
):
    """The caller of a handler that returns too much hears why."""
    await busmicro_start(greeter())

    with pytest.raises(ResourceExhausted, match="could not be sent"):
        await busmicro_client.call("greeter", "large", 2_000_000)


async def test_reply_of_the_wrong_type_is_internal(busmicro_client, busmicro_start):
    """What a handler returns is checked too; half-right replies are not sent."""
    await busmicro_start(greeter())

    with pytest.raises(Internal, match="not declared"):
        await busmicro_client.call("greeter", "wrong")


async def test_reply_that_the_caller_does_not_expect_is_data_loss(busmicro_client, busmicro_start):
    """A reply that does not fit `returns` is an error with the reasons, never half a reply."""
    await busmicro_start(greeter())

    with pytest.raises(CallError) as caught:
        await busmicro_client.call("greeter", "hello", {"name": "J"}, returns=Point)

    assert caught.value.code is Code.DATA_LOSS
    assert caught.value.details


async def test_unknown_endpoint_of_a_live_service_is_unimplemented(busmicro_client, busmicro_start):
    """A misspelt endpoint is told apart from a service that is down, with the likely name."""
    await busmicro_start(greeter())

    with pytest.raises(Unimplemented, match="did you mean hello"):
        await busmicro_client.call("greeter", "helo", {"name": "J"})


async def test_no_node_is_unavailable_within_ten_milliseconds(busmicro_client):
    """Where nobody serves, the caller knows at once, median of twenty."""
    took = []
    for _ in range(20):
        began = time.perf_counter()
        with pytest.raises(Unavailable) as caught:
            await busmicro_client.call("nobody", "hello")
        took.append(time.perf_counter() - began)

    assert caught.value.not_run
    assert sorted(took)[10] < 0.010


@pytest.mark.parametrize("name", ["", "a b", "a.b", "ü", "a*", ">", "x" * 65])
async def test_bad_service_name_is_refused_before_the_wire(busmicro_client, name):
    """A name that cannot be a service's is told the rule, at the caller."""
    with pytest.raises(InvalidArgument, match="service name"):
        await busmicro_client.call(name, "hello")


@pytest.mark.parametrize(
    "headers", [{"X": "a\r\nNats-Service-Error-Code: 200"}, {"X Y": "a"}, {"X": "ü"}, {"": "a"}]
)
async def test_bad_header_is_refused_before_the_wire(busmicro_client, busmicro_start, headers):
    """A header that would not arrive as it was given is refused at the caller."""
    await busmicro_start(greeter())

    with pytest.raises(InvalidArgument, match="header"):
        await busmicro_client.call("greeter", "hello", {"name": "J"}, headers=headers)


async def test_failure_of_a_nested_call_is_not_taken_for_a_call_that_did_not_run(
    busmicro_client, busmicro_start
):
    """A handler that ran is never run again because something it called could not be reached."""
    runs = 0
    service = Service("outer")

    @service.rpc
    async def charge() -> None:
        nonlocal runs
        runs += 1
        await service.client.call("nobody", "there")

    await busmicro_start(service)

    with pytest.raises(Unavailable) as caught:
        await busmicro_client.call("outer", "charge")

    assert runs == 1
    assert not caught.value.not_run


async def test_hopeless_failures_cost_no_retry(busmicro_server, busmicro_start):
    """What will be no better next time is not tried again and spends nothing of the budget."""
    retry = Retry()
    await busmicro_start(greeter())
    async with Client(busmicro_server.url, wrappers=[retry]) as client:
        for endpoint, message, headers in [
            ("nope", {}, {}),
            ("hello", {"name": "x" * 2_000_000}, {}),
            ("hello", {"name": "J"}, {"X": "ü"}),
            ("hello", object(), {}),
        ]:
            with pytest.raises(CallError):
                await client.call("greeter", endpoint, message, headers=headers)

    assert retry.budget("greeter").left == 10.0


async def test_reply_header_that_looks_like_an_error_is_none(busmicro_client, busmicro_start):
    """Whatever a handler puts into its own headers, its success stays a success."""
    service = Service("notes")

    @service.rpc
    async def note(call: Call) -> str:
        call.reply_headers["X-Note"] = "see Nats-Service-Error"
        return "fine"

    await busmicro_start(service)

    assert await busmicro_client.call("notes", "note") == "fine"
