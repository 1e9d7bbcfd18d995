"""A handler's signature says what it takes and gives, or registration says what is wrong."""

from __future__ import annotations

import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from busmicro.call import Call
from busmicro.endpoint import (
    EndpointOptions,
    Shape,
    endpoint_options,
    label,
    options_of,
    public_methods,
    read_signature,
)
from busmicro.errors import SetupError


class Request(BaseModel):
    """What is asked."""

    name: str


class Reply(BaseModel):
    """What is answered."""

    text: str


Positive = Annotated[int, Field(gt=0)]


async def unary(request: Request) -> Reply:
    """Say hello.

    More words.
    """


async def with_call(request: Request, call: Call) -> Reply: ...


async def only_call(call: Call) -> Reply: ...


async def nothing() -> None: ...


async def takes_none(request: None) -> Reply: ...


async def server_stream(request: Request) -> AsyncIterator[Reply]:
    yield Reply(text="")


async def server_stream_by_generator(request: Request) -> AsyncGenerator[Reply, None]:
    yield Reply(text="")


async def client_stream(requests: AsyncIterator[Request]) -> Reply: ...


async def client_stream_by_iterable(requests: AsyncIterable[Request], call: Call) -> Reply: ...


async def both_ways(requests: typing.AsyncIterator[Request]) -> typing.AsyncIterator[Reply]:
    async for request in requests:
        yield Reply(text=request.name)


@pytest.mark.parametrize(
    ("function", "shape", "request_type", "reply_type", "takes_call"),
    [
        (unary, Shape.UNARY, Request, Reply, False),
        (with_call, Shape.UNARY, Request, Reply, True),
        (only_call, Shape.UNARY, None, Reply, True),
        (nothing, Shape.UNARY, None, None, False),
        (takes_none, Shape.UNARY, None, Reply, False),
        (server_stream, Shape.SERVER_STREAM, Request, Reply, False),
        (server_stream_by_generator, Shape.SERVER_STREAM, Request, Reply, False),
        (client_stream, Shape.CLIENT_STREAM, Request, Reply, False),
        (client_stream_by_iterable, Shape.CLIENT_STREAM, Request, Reply, True),
        (both_ways, Shape.BOTH, Request, Reply, False),
    ],
)
def test_shape_follows_the_signature(function, shape, request_type, reply_type, takes_call):
    """What a handler is, its type hints say; nothing has to be declared twice."""
    read = read_signature(function)

    assert (read.shape, read.takes_call) == (shape, takes_call)
    assert (read.request_type, read.reply_type) == (request_type, reply_type)


def test_first_paragraph_of_the_docstring_describes_the_endpoint():
    """People who look a service up read what its author wrote."""
    assert read_signature(unary).doc == "Say hello."
    assert read_signature(nothing).doc == ""


def test_bound_method_is_read_without_self():
    """A handler may be a method of an object that holds what it needs."""

    class Greeter:
        async def hello(self, request: Request) -> Reply: ...

    assert read_signature(Greeter().hello).request_type is Request


def test_constraints_in_annotated_are_kept():
    """A handler that asks for a number above zero gets no other."""

    async def square_root(number: Positive) -> list[Positive]: ...

    read = read_signature(square_root)

    assert read.request_type == Positive
    assert read.reply_type == list[Positive]


def sync(request: Request) -> Reply: ...


async def no_reply_hint(request: Request): ...


async def no_request_hint(request) -> Reply: ...


async def two_messages(a: Request, b: Request) -> Reply: ...


async def call_first(call: Call, request: Request) -> Reply: ...


async def keyword_only(*, request: Request) -> Reply: ...


async def any_number(*requests: Request) -> Reply: ...


async def unknown_type(request: Missing) -> Reply: ...  # noqa: F821 - the point of it


async def yields_but_says_not(request: Request) -> Reply:
    yield Reply(text="")


async def bare_iterator(request: Request) -> AsyncIterator: ...


async def bare_typing_iterator(requests: typing.AsyncIterator) -> Reply: ...


@pytest.mark.parametrize(
    ("function", "fix"),
    [
        (sync, "async def"),
        (no_reply_hint, "-> Reply"),
        (no_request_hint, "'request' has no type hint"),
        (two_messages, "put the rest into the request"),
        (call_first, "put the rest into the request"),
        (keyword_only, r"\(request\) or \(request, call\)"),
        (any_number, r"\(request\) or \(request, call\)"),
        (unknown_type, "import the types at run time"),
        (yields_but_says_not, r"AsyncIterator\[Reply\]"),
        (bare_iterator, r"AsyncIterator\[Message\]"),
        (bare_typing_iterator, r"AsyncIterator\[Message\]"),
    ],
)
def test_signature_that_cannot_work_is_refused_with_the_fix(function, fix: str):
    """Who writes a handler that cannot work reads where it stands and what to write instead."""
    with pytest.raises(SetupError, match=fix) as refused:
        read_signature(function)

    assert f"{function.__name__} ({__file__}:" in str(refused.value)


def test_label_survives_what_is_no_function():
    """The text about something that is no function names it as well as can be."""
    assert "<object" in label(object())
    assert label(len) == "len"


def test_options_travel_with_the_function():
    """What an author says of an endpoint is there for the service and for its callers."""

    @endpoint_options("Greeter.hello", timeout=2.0, idempotent=True, metadata={"team": "a"})
    async def hello(request: Request) -> Reply: ...

    assert options_of(hello) == EndpointOptions(
        name="Greeter.hello", timeout=2.0, idempotent=True, metadata={"team": "a"}
    )
    assert options_of(unary) == EndpointOptions()


@pytest.mark.parametrize("timeout", [0.0, -1.0, 86_401.0, float("inf"), float("nan")])
def test_timeout_that_cannot_be_meant_is_refused(timeout: float):
    """A time-out of nothing or of more than a day is told at registration."""
    with pytest.raises(SetupError, match="86,400"):
        endpoint_options(timeout=timeout)


def test_public_methods_are_endpoints_in_order_of_definition():
    """A class serves its public methods, its bases' first, and none that begin with `_`."""

    class Base:
        async def first(self) -> None: ...

        async def second(self) -> None: ...

    class Greeter(Base):
        value = 7

        async def third(self) -> None: ...

        async def first(self) -> None: ...

        async def _private(self) -> None: ...

    found = public_methods(Greeter)

    assert list(found) == ["first", "second", "third"]
    assert found["first"] is Greeter.first
