"""What whoever stands outside sees of a stream that was opened with a copy of its call."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial

from busmicro.call import Call, Handler, Kind, Side, Spec, compose
from busmicro.session import Session


async def test_outer_wrapper_sees_that_the_stream_is_open_although_an_inner_one_made_a_copy():
    """A breaker outside a retry learns from `began` and `stream` that its probe has succeeded."""
    seen: list[Call] = []
    stream = object()

    async def outer(call: Call, call_next: Handler) -> object:
        seen.append(call)
        return await call_next(call)

    async def again(call: Call, call_next: Handler) -> object:
        return await call_next(call.copy())

    @contextlib.asynccontextmanager
    async def opener(_call: Call) -> AsyncIterator[object]:
        yield stream

    call = Call(Spec(service="s", endpoint="m", kind=Kind.STREAM, side=Side.CLIENT))
    assert (call.began, call.stream) == (False, None)

    async with Session(partial(compose, [outer, again]), call, opener):
        assert seen == [call]
        assert (call.began, call.stream) == (True, stream)
