"""A stream's wrappers hold from before it opens until its block has ended, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest

from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose, through
from busmicro.session import Session

SPAN = contextvars.ContextVar("span", default="none")


def call_of(kind: Kind = Kind.STREAM, side: Side = Side.CLIENT, message: object = None) -> Call:
    return Call(Spec(service="s", endpoint="m", kind=kind, side=side), message)


class Pipe:
    """A stream that remembers what happened to it."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[object] = asyncio.Queue()
        self.sent: list[object] = []
        self.closed = ""
        self.opened = 0

    async def send(self, message: object) -> None:
        self.sent.append(message)

    async def receive(self) -> object:
        return await self.arrived.get()


def opening(pipe: Pipe, failures: int = 0):
    @contextlib.asynccontextmanager
    async def opener(_call: Call) -> AsyncIterator[Pipe]:
        await asyncio.sleep(0)
        pipe.opened += 1
        if pipe.opened <= failures:
            raise ConnectionError
        try:
            yield pipe
        except BaseException as failure:
            pipe.closed = type(failure).__name__
            raise
        else:
            pipe.closed = "clean"

    return opener


def session(wrappers: list[Wrapper], opener: Callable[..., object]) -> Session[Pipe]:
    return Session(partial(compose, wrappers), call_of(), opener)  # type: ignore[arg-type]


class Timing:
    """Notes the begin and the end of what it wraps."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    async def __call__(self, call: Call, call_next: Handler) -> object:
        self.log.append(("in", call.spec.kind.value))
        try:
            reply = await call_next(call)
        except BaseException as failure:
            self.log.append(("err", type(failure).__name__))
            raise
        self.log.append(("ok", call.spec.kind.value))
        return reply


@pytest.fixture
def timing() -> Timing:
    return Timing()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


async def deadline(call: Call, call_next: Handler) -> object:
    async with asyncio.timeout(0.05):
        return await call_next(call)


async def span(call: Call, call_next: Handler) -> object:
    token = SPAN.set("inner")
    try:
        return await call_next(call)
    finally:
        SPAN.reset(token)


async def retry(call: Call, call_next: Handler) -> object:
    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            return await call_next(call)
    return await call_next(call)


async def swallow(call: Call, call_next: Handler) -> object:
    with contextlib.suppress(ValueError):
        return await call_next(call)
    return None


async def translate(call: Call, call_next: Handler) -> object:
    try:
        return await call_next(call)
    except ValueError as wrong:
        raise LookupError("translated") from wrong


async def test_same_wrappers_fit_a_call(timing: Timing):
    """A wrapper written for streams times and retries plain calls too."""
    tries = 0

    async def handler(call: Call) -> object:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionError
        return call.message

    assert await compose([timing, retry], handler)(call_of(Kind.UNARY, message=42)) == 42
    assert timing.log == [("in", "unary"), ("ok", "unary")]


async def test_same_wrappers_fit_an_event(timing: Timing):
    """A wrapper written for streams times events too."""
    published: list[object] = []

    async def publish(call: Call) -> object:
        published.append(call.message)
        return None

    await compose([timing], publish)(call_of(Kind.EVENT, message=b"x"))

    assert published == [b"x"]
    assert timing.log == [("in", "event"), ("ok", "event")]


async def test_stream_ends_when_its_block_ends(timing: Timing, pipe: Pipe):
    """Wrappers and their context variables hold for the whole block and no longer."""
    async with session([timing, span], opening(pipe)) as stream:
        assert timing.log == [("in", "stream")]
        assert SPAN.get() == "inner"
        await stream.send(1)
        pipe.arrived.put_nowait(2)
        assert await stream.receive() == 2

    assert timing.log[-1] == ("ok", "stream")
    assert SPAN.get() == "none"
    assert pipe.closed == "clean"


async def test_error_of_the_body_reaches_wrappers_and_escapes(timing: Timing, pipe: Pipe):
    """A failure in the block is seen by every wrapper, and by whoever wrote the block."""
    failure = ValueError("x")

    with pytest.raises(ValueError, match="x") as raised:
        async with session([timing], opening(pipe)):
            raise failure

    assert raised.value is failure
    assert timing.log[-1] == ("err", "ValueError")
    assert pipe.closed == "ValueError"


async def test_wrapper_cannot_swallow_the_bodys_error(pipe: Pipe):
    """A block that failed never looks as if it had worked."""
    with pytest.raises(ValueError, match="x"):
        async with session([swallow], opening(pipe)):
            raise ValueError("x")


async def test_wrapper_may_turn_the_bodys_error_into_another(pipe: Pipe):
    """A wrapper may say better what went wrong."""
    with pytest.raises(LookupError, match="translated"):
        async with session([translate], opening(pipe)):
            raise ValueError("x")


async def test_wrappers_deadline_stops_a_hanging_receive(timing: Timing, pipe: Pipe):
    """A time limit around a stream ends a block that waits for a message for ever."""
    async with asyncio.timeout(5):
        with pytest.raises(TimeoutError):
            async with session([timing, deadline], opening(pipe)) as stream:
                await stream.receive()

    task = asyncio.current_task()
    assert timing.log[-1] == ("err", "TimeoutError")
    assert task is not None
    assert task.cancelling() == 0


async def test_cancellation_from_outside_goes_through(timing: Timing, pipe: Pipe):
    """Cancelling the task that holds a stream closes the stream and ends the task."""

    async def body() -> None:
        async with session([timing, timing], opening(pipe)) as stream:
            await stream.receive()

    task = asyncio.get_running_loop().create_task(body())
    while not pipe.opened:
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert timing.log[-2:] == [("err", "CancelledError")] * 2
    assert pipe.closed == "CancelledError"


async def test_body_cancelled_twice_ends(timing: Timing, pipe: Pipe):
    """A second cancellation, while a wrapper still cleans up after the first, ends that too."""
    cleaning = asyncio.Event()

    async def slow_to_clean_up(call: Call, call_next: Handler) -> object:
        try:
            return await call_next(call)
        finally:
            cleaning.set()
            await asyncio.Event().wait()

    async def body() -> None:
        async with session([timing, slow_to_clean_up], opening(pipe)) as stream:
            await stream.receive()

    task = asyncio.get_running_loop().create_task(body())
    while not pipe.opened:
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        await cleaning.wait()
    task.cancel()

    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert timing.log[-1] == ("err", "CancelledError")


async def test_cancellation_while_opening_goes_through(timing: Timing):
    """A stream that does not open can be given up like any other wait."""

    @contextlib.asynccontextmanager
    async def never(_call: Call) -> AsyncIterator[Pipe]:
        await asyncio.Event().wait()
        yield Pipe()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02), session([timing], never):
            pytest.fail("was opened")

    assert timing.log[-1] == ("err", "CancelledError")


async def test_open_is_tried_again(pipe: Pipe):
    """A retry wrapper opens a stream that could not be opened at first."""
    async with session([retry], opening(pipe, failures=2)) as stream:
        await stream.send(1)

    assert pipe.sent == [1]
    assert pipe.opened == 3


async def test_failure_to_open_is_raised(timing: Timing, pipe: Pipe):
    """A stream that cannot be opened says so at the `async with`."""
    with pytest.raises(ConnectionError):
        async with session([timing, retry], opening(pipe, failures=9)):
            pytest.fail("was opened")

    assert timing.log[-1] == ("err", "ConnectionError")


async def test_reopening_after_open_is_refused(pipe: Pipe):
    """A retry wrapper cannot run the block a second time, and is told."""
    with pytest.raises(RuntimeError, match="again"):
        async with session([retry], opening(pipe)):
            raise ConnectionError


async def test_task_group_inside_the_body_works(timing: Timing, pipe: Pipe):
    """A block may send and receive at the same time."""
    async with session([timing, deadline], opening(pipe)) as stream, asyncio.TaskGroup() as group:
        group.create_task(stream.send(1))
        group.create_task(stream.send(2))

    assert pipe.sent == [1, 2]


async def test_leaving_in_another_task_is_refused(timing: Timing, pipe: Pipe):
    """A stream handed to another task is told why that cannot work, and is closed."""
    opened = session([timing, span], opening(pipe))
    await asyncio.get_running_loop().create_task(opened.__aenter__())

    with pytest.raises(RuntimeError, match="in the task that entered"):
        await opened.__aexit__(None, None, None)
    assert pipe.closed == "GeneratorExit"


async def test_leaving_what_was_never_entered_is_refused(pipe: Pipe):
    """A stream used without `async with` is told so."""
    with pytest.raises(RuntimeError, match="async with"):
        await session([], opening(pipe)).__aexit__(None, None, None)


async def test_wrapper_that_does_not_call_on_is_refused(pipe: Pipe):
    """A wrapper that answers a stream by itself is told to raise instead."""

    async def answers(call: Call, call_next: Handler) -> object:
        return "cached"

    with pytest.raises(RuntimeError, match="without call_next"):
        async with session([answers], opening(pipe)):
            pytest.fail("was opened")

    assert pipe.opened == 0


async def test_wrapper_that_calls_on_in_another_task_is_refused(pipe: Pipe):
    """A wrapper that uses tasks of its own is told what to use, and the stream is closed."""

    async def in_a_task(call: Call, call_next: Handler) -> object:
        return await asyncio.gather(call_next(call))

    with pytest.raises(RuntimeError, match=r"asyncio\.timeout"):
        async with session([in_a_task], opening(pipe)):
            pytest.fail("was opened")

    assert pipe.closed == "RuntimeError"


async def test_wrapper_that_raises_refuses_the_stream(pipe: Pipe):
    """Authorisation that fails keeps a stream from being opened."""

    async def refuse(call: Call, call_next: Handler) -> object:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError, match="not yours"):
        async with session([refuse], opening(pipe)):
            pytest.fail("was opened")

    assert pipe.opened == 0


async def test_entering_twice_is_refused(pipe: Pipe):
    """A stream that has ended is not opened again by mistake."""
    opened = session([], opening(pipe))
    async with opened:
        pass

    with pytest.raises(RuntimeError, match="open another"):
        async with opened:
            pytest.fail("was opened")


async def test_session_that_is_never_entered_leaves_nothing_behind(pipe: Pipe):
    """Making a stream and not using it warns of nothing."""
    session([deadline], opening(pipe))

    gc.collect()

    assert pipe.opened == 0


class Mark:
    """A tap that leaves its name on each message."""

    def __init__(self, name: str) -> None:
        self.name = name

    def outgoing(self, message: object, /) -> object:
        return f"{message}>{self.name}"

    def incoming(self, message: object, /) -> object:
        return f"{message}<{self.name}"


def marking(name: str) -> Wrapper:
    async def wrapper(call: Call, call_next: Handler) -> object:
        call.taps.append(Mark(name))
        return await call_next(call)

    return wrapper


@pytest.mark.parametrize(
    ("side", "out", "seen"),
    [
        (Side.CLIENT, True, "m>a>b"),
        (Side.CLIENT, False, "m<b<a"),
        (Side.HANDLER, False, "m<a<b"),
        (Side.HANDLER, True, "m>b>a"),
    ],
)
async def test_taps_of_wrappers_see_messages_in_onion_order(side: Side, out: bool, seen: str):
    """What the outermost wrapper does to each message is outermost at both ends."""
    call = call_of(side=side)

    async with Session(
        partial(compose, [marking("a"), marking("b")]),
        call,
        lambda call: contextlib.nullcontext(partial(through, call)),
    ) as pass_through:
        assert pass_through("m", out=out) == seen
