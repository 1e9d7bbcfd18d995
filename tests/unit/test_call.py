"""One exchange passes one chain of wrappers, whatever it is and at whichever end."""

from __future__ import annotations

import asyncio

import pytest

from busmicro.call import (
    Call,
    Handler,
    Kind,
    Side,
    Spec,
    Wrapper,
    asked,
    compose,
    current_call,
    enter_call,
    through,
)
from busmicro.errors import CodecError, InvalidArgument
from busmicro.headers import Headers


def call_of(kind: Kind = Kind.UNARY, side: Side = Side.CLIENT, message: object = None) -> Call:
    return Call(Spec(service="greeter", endpoint="hello", kind=kind, side=side), message)


def received(payload: bytes, decode) -> Call:
    spec = Spec(service="greeter", endpoint="hello", kind=Kind.UNARY, side=Side.HANDLER)
    return Call(spec, headers=Headers(), deadline=5.0, payload=payload, decode=decode)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("side", Side)
async def test_first_wrapper_is_the_outermost_for_every_kind_and_side(kind: Kind, side: Side):
    """Wrappers run in the order in which they were given, and end in the opposite one."""
    seen: list[str] = []

    def noting(name: str) -> Wrapper:
        async def wrapper(call: Call, call_next: Handler) -> object:
            seen.append(f"{name} in")
            try:
                return await call_next(call)
            finally:
                seen.append(f"{name} out")

        return wrapper

    async def handler(call: Call) -> object:
        seen.append(call.spec.kind.value)
        return call.message

    chain = compose([noting("a"), noting("b")], handler)

    assert await chain(call_of(kind, side, 7)) == 7
    assert seen == ["a in", "b in", kind.value, "b out", "a out"]


async def test_chain_without_wrappers_is_the_handler():
    """No wrappers cost nothing."""

    async def handler(call: Call) -> object:
        return call.message

    assert compose([], handler) is handler


async def test_composing_a_generator_of_wrappers_works():
    """Wrappers may come from any iterable, once."""

    async def twice(call: Call, call_next: Handler) -> object:
        return f"{await call_next(call)}!"

    async def handler(call: Call) -> object:
        return call.message

    chain = compose((twice for _ in range(2)), handler)

    assert await chain(call_of(message="hi")) == "hi!!"
    assert await chain(call_of(message="ho")) == "ho!!"


async def test_wrapper_need_not_call_the_handler():
    """A cache answers without asking anybody."""

    async def cached(call: Call, call_next: Handler) -> object:
        return "cached"

    async def handler(call: Call) -> object:
        return pytest.fail("was called")

    assert await compose([cached], handler)(call_of()) == "cached"


def test_message_is_decoded_on_first_read_and_once():
    """What nobody reads is never decoded, and what is read twice is decoded once."""
    decoded: list[bytes] = []

    def decode(payload: bytes) -> object:
        decoded.append(payload)
        return payload.decode()

    call = received(b"John", decode)

    assert decoded == []
    assert (call.message, call.message) == ("John", "John")
    assert decoded == [b"John"]
    assert call.payload == b"John"


def test_bad_payload_is_an_invalid_argument_with_its_details_each_time():
    """A wrapper that reads a broken message gets the answer that the caller will get."""

    def decode(_payload: bytes) -> object:
        raise CodecError("not a name", [{"field": "name"}])

    call = received(b"{", decode)

    for _ in range(2):
        with pytest.raises(InvalidArgument, match="not a name") as wrong:
            _ = call.message
        assert wrong.value.details == [{"field": "name"}]


def test_message_put_in_place_is_not_decoded_any_more():
    """A wrapper may replace a message that it never read."""
    call = received(b"{", lambda _payload: pytest.fail("was decoded"))

    call.message = "other"

    assert call.message == "other"


def test_copy_has_headers_and_taps_of_its_own():
    """What one attempt adds to a call, the next attempt does not see."""
    call = call_of(message="m")
    call.headers["A"] = "1"
    call.taps.append(Mark("a"))

    other = call.copy()
    other.headers["A"] = "2"
    other.taps.append(Mark("b"))
    other.reply_headers["R"] = "1"
    other.deadline = 1.0

    assert call.headers["A"] == "1"
    assert len(call.taps) == 1
    assert not call.has_reply_headers
    assert call.deadline is None
    assert other.message == "m"


@pytest.mark.parametrize("read_first", [False, True])
def test_copy_of_a_received_call_has_its_message_and_payload(read_first: bool):
    """A second attempt at a handler sees the same request as the first."""
    call = received(b"John", bytes.decode)
    if read_first:
        assert call.message == "John"

    other = call.copy()

    assert (other.payload, other.message) == (b"John", "John")


def test_copy_has_the_headers_that_were_given():
    """A second attempt says what the first one said, usual headers and those of the call."""
    call = asked(call_of().spec, "m", {"A": "1"}, {"B": "2"}, None)

    other = call.copy()

    assert dict(other.headers) == {"A": "1", "B": "2"}


def test_trace_is_handed_on_and_nothing_is_where_there_is_none():
    """What is called in a handler belongs to its trace; without one it is as if called alone."""
    traced, plain = call_of(), call_of()
    traced.headers.update({"traceparent": "00-1-2-01", "X-Tenant": "acme"})
    first, second = call_of(), call_of()

    traced.pass_on_trace(first)
    plain.pass_on_trace(second)

    assert dict(first.headers) == {"traceparent": "00-1-2-01"}
    assert not second.has_headers


def test_asking_for_headers_does_not_make_them():
    """A call without headers costs no header block on the wire."""
    call = call_of()

    assert not call.has_headers
    assert not call.has_reply_headers
    call.headers["A"] = "1"
    call.reply_headers["B"] = "1"
    assert call.has_headers
    assert call.has_reply_headers


def test_repr_of_a_call_names_it_and_not_its_message():
    """A log line says which call it is without showing what was in it."""
    assert repr(call_of(message="secret")) == "<Call greeter.hello unary at client>"


class Mark:
    """A tap that leaves its name on each message."""

    def __init__(self, name: str) -> None:
        self.name = name

    def outgoing(self, message: object, /) -> object:
        return f"{message}>{self.name}"

    def incoming(self, message: object, /) -> object:
        return f"{message}<{self.name}"


@pytest.mark.parametrize(
    ("side", "out", "seen"),
    [
        (Side.CLIENT, True, "m>a>b"),
        (Side.CLIENT, False, "m<b<a"),
        (Side.HANDLER, False, "m<a<b"),
        (Side.HANDLER, True, "m>b>a"),
    ],
)
def test_taps_see_messages_in_onion_order(side: Side, out: bool, seen: str):
    """The outermost tap is the first to see what goes to the handler and the last on the way."""
    call = call_of(Kind.STREAM, side)
    call.taps.extend([Mark("a"), Mark("b")])

    assert through(call, "m", out=out) == seen


async def test_current_call_is_the_one_that_this_task_serves():
    """Code deep inside a handler can ask which call it serves, and tasks do not mix."""

    async def serve(name: str) -> object:
        enter_call(call_of(message=name))
        await asyncio.sleep(0)
        call = current_call()
        assert call is not None
        return call.message

    assert await asyncio.gather(serve("a"), serve("b")) == ["a", "b"]
    assert current_call() is None
