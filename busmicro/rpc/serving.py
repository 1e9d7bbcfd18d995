"""The node's end of a stream: it is opened, a handler runs, a status ends it.

A stream's way: `StreamBinding.on_request` (in the read loop: may it be answered, is there room?) →
an owned task, `_Served.run` → wrappers → `stream_invoker`: decode the request, accept, then the
user's function, whose messages go out as the caller allows → the status.

Until it is accepted, a stream is refused as any request is: on its reply subject, not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Protocol, cast

from busmicro.call import Call, Handler, enter_call, received, through
from busmicro.codecs import Coder
from busmicro.endpoint import Shape
from busmicro.errors import (
    CallError,
    Cancelled,
    CodecError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from busmicro.rpc.answering import (
    explain,
    not_declared,
    read_asked,
    reply_block,
    reply_lines,
)
from busmicro.rpc.awake import out_of_time
from busmicro.rpc.frames import Window, read_window
from busmicro.rpc.handlers import Endpoint
from busmicro.rpc.limits import Limits
from busmicro.rpc.link import Link
from busmicro.rpc.pieces import header_block

if TYPE_CHECKING:
    from busmicro.rpc.server import RpcServer

_BUSY_FOR = 0.05


class StreamBinding:
    """A streaming endpoint that listens: turns messages into streams."""

    def __init__(self, server: RpcServer, endpoint: Endpoint, chain: Handler) -> None:
        self.server = server
        self.endpoint = endpoint
        self.chain = chain
        self.limits = Limits.of(server.bus.settings)

    def on_request(self, _subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        """Take one message off the wire."""
        server = self.server
        if server.owns(reply) or not server.admit(reply, below=True):  # opened twice is opened once
            return
        try:
            server.callers.enter(reply)
            served = _Served(self, reply, header, payload)
        except CallError as refused:
            server.callers.leave(reply)
            server.answer_error(reply, refused)
            return
        server.own(served)
        served.task = server.loop.create_task(served.run())


class Callers:
    """How many streams each caller has on a node; a caller is the inbox that it listens on."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._streams: Counter[bytes] = Counter()

    def enter(self, reply: bytes) -> None:
        """Count a stream.

        Raises:
            ResourceExhausted: The caller has too many; this one is counted until `leave`.
        """
        inbox = _inbox(reply)
        self._streams[inbox] += 1
        if self._streams[inbox] > self._most:
            raise ResourceExhausted(
                f"{self._most} streams of this caller are open on this node already; close some, "
                "or raise BUSMICRO_MAX_STREAMS_PER_CALLER there",
                retry_after=_BUSY_FOR,
                not_run=True,
            )

    def leave(self, reply: bytes) -> None:
        """Forget a stream."""
        inbox = _inbox(reply)
        self._streams[inbox] -= 1
        if not self._streams[inbox]:
            del self._streams[inbox]


def _inbox(reply: bytes) -> bytes:
    """Tell callers apart; who has a new inbox for each stream counts as somebody else each time."""
    inbox = reply.rpartition(b".")[0]
    return inbox if b"." in inbox else reply


class _Served:
    """One stream at its node: ended exactly once, by its handler or by what ends it."""

    __slots__ = (
        "_asked",
        "_binding",
        "_header",
        "_payload",
        "arrived",
        "began",
        "encoder",
        "ended",
        "is_set",
        "key",
        "link",
        "reply",
        "started",
        "task",
        "window",
    )

    def __init__(self, binding: StreamBinding, reply: bytes, header: bytes, payload: bytes) -> None:
        self.reply = reply
        self.key = b""
        self.is_set = False
        self.task: asyncio.Task[None] | None = None
        self.arrived = binding.server.awake.arrived()
        self.began = False
        """Has the caller been told that it is accepted?"""
        self.ended = False
        """Has its end begun here, so that it needs no more cancelling?"""
        self.started = False
        self.window = Window()
        self.encoder: Coder = binding.endpoint.replies.default
        self._binding = binding
        self._header = header
        self._payload = payload
        server = binding.server
        self.link = Link(
            server.bus,
            binding.endpoint.spec.service,
            binding.limits,
            serving=True,
        )
        self.link.on_over = self._on_over
        self.link.on_closed = self._on_closed

    async def run(self) -> None:
        """Work the stream through the chain and end it."""
        self.started = True
        endpoint, server = self._binding.endpoint, self._binding.server
        error = ""
        try:
            call = self._call(endpoint)
            enter_call(call)
            await self._binding.chain(call)
            self._finish(call)
        except (Exception, asyncio.CancelledError) as failure:
            told = explain(failure, endpoint.spec, began=self.began)
            error = str(self.link.end.outcome or told)  # what ended it, not that it was cancelled
            self._fail(told)
        finally:
            server.timers.drop(self)
            endpoint.figures.count(time.monotonic() - self.arrived, error)
            server.done(self)
            self.task, self._payload, self._header = None, b"", b""

    def _call(self, endpoint: Endpoint) -> Call:
        """Read what is asked; what cannot be is refused before any wrapper sees it."""
        content_type, timeout, window = read_asked(self._header)
        if window is None:
            raise Unimplemented(f"{endpoint.name} streams: open a stream to it", not_run=True)
        self.window = read_window(window)
        deadline = self._deadline(endpoint.options.timeout if timeout is None else timeout)
        coder = _require(endpoint, content_type)
        self.encoder = endpoint.replies.find(content_type) or endpoint.replies.default
        call = received(endpoint.spec, coder.decode, self._payload, self._header, deadline)
        if endpoint.takes_many:
            if self._payload:
                text = "it takes its messages as frames of the stream, not with the request"
                raise InvalidArgument(f"{endpoint.name}: {text}", not_run=True)
            call.message = None
        call.stream = _Exchange(self, coder)
        return call

    def _deadline(self, timeout: float | None) -> float | None:
        if timeout is None:
            return None
        deadline = self.arrived + timeout
        if time.monotonic() >= deadline:
            raise out_of_time(self.arrived)
        self._binding.server.timers.set(self, deadline)
        return deadline

    def accept(self, call: Call) -> None:
        """Tell the caller that its stream is open."""
        if not (self.began or self.ended):
            header = reply_block(self.encoder.content_type, call)
            self.began = True
            self.link.connect(self.reply)
            self.link.end.accept(header, self.window)

    def _finish(self, call: Call) -> None:
        self.accept(call)
        lines = reply_lines(call) if call.has_reply_headers else b""
        self.ended = True
        self.link.end.finish(header_block(lines), b"", None)

    def _fail(self, told: CallError) -> None:
        if self.ended:
            return
        self.ended = True
        if self.began:
            self.link.end.fail(told)
        else:
            self._binding.server.answer_error(self.reply, told)
            self.link.forget()

    def expire(self) -> None:
        """Tell the caller that the time is up, and cancel the handler."""
        self.end(DeadlineExceeded("the handler did not finish in time"))

    def end(self, told: CallError | None) -> None:
        """Cancel the handler; the caller is told so, or has gone and is told nothing."""
        if told is not None:
            self._fail(told)
        elif not self.ended:
            self.ended = True
            self.link.end.drop(Cancelled("the caller has cancelled"))
        self._cancel()

    def _on_over(self) -> None:
        """Hear that the stream is over; if the other end has ended it, so does the handler."""
        if not self.ended:
            self.ended = True
            if asyncio.current_task() is not self.task:  # else the handler hears it at once
                self._cancel()

    def _cancel(self) -> None:
        if self.task is not None and not self.task.done():
            self.task.cancel()
            if not self.started:  # a task cancelled before its first step never reaches `finally`
                self._binding.server.done(self)

    def _on_closed(self) -> None:
        self._binding.server.callers.leave(self.reply)


def _require(endpoint: Endpoint, content_type: str) -> Coder:
    try:
        return endpoint.requests.require(content_type)
    except CodecError as wrong:
        raise InvalidArgument(str(wrong), details=wrong.details, not_run=True) from wrong


class _Exchange:
    """What the innermost of a handler's chain needs of the stream: `Call.stream`, at the node."""

    __slots__ = ("decode", "served")

    def __init__(self, served: _Served, coder: Coder) -> None:
        self.served = served
        self.decode = coder.decode

    @property
    def outcome(self) -> CallError | None:
        """How the stream ended, if not well; None while it is open."""
        return self.served.link.end.outcome


class _Replies:
    """Sends what a handler gives."""

    __slots__ = ("_call", "_encode", "_link", "_tapped")

    def __init__(self, call: Call, exchange: _Exchange) -> None:
        self._call = call
        self._link = exchange.served.link
        self._encode = exchange.served.encoder.encode
        self._tapped = call.has_taps

    async def send(self, message: object) -> None:
        """Send a message; headers that the handler has set by now go with the first one."""
        call, link = self._call, self._link
        if self._tapped:
            message = through(call, message, out=True)
        try:
            payload = self._encode(message)
        except CodecError as wrong:
            raise not_declared(call.spec, wrong) from wrong
        if call.has_reply_headers and not link.end.outgoing.sent:
            await link.send(payload, reply_lines(call))
        elif not link.send_now(payload):
            await link.send(payload)

    async def send_all(self, given: Awaitable[object] | _Many) -> None:
        """Send all that a handler yields; close it whatever happens."""
        many = cast("_Many", await given if inspect.isawaitable(given) else given)
        iterator = aiter(many)
        async with contextlib.AsyncExitStack() as stack:
            if inspect.isasyncgen(iterator):
                stack.push_async_callback(iterator.aclose)
            async for message in iterator:
                await self.send(message)


class Requests(AsyncIterator[object]):
    """The messages of a caller, as a handler iterates over them."""

    def __init__(self, call: Call, exchange: _Exchange) -> None:
        self._call = call
        self._decode = exchange.decode
        self._link = exchange.served.link
        self._tapped = call.has_taps

    def __aiter__(self) -> Requests:
        return self

    async def __anext__(self) -> object:
        frame = self._link.ready() or await self._link.receive()
        if frame is None:
            raise StopAsyncIteration
        try:
            message = self._decode(frame[2])
        except CodecError as wrong:
            raise InvalidArgument(str(wrong), details=wrong.details) from wrong
        return through(self._call, message, out=False) if self._tapped else message


class _Many(Protocol):
    """What a handler that gives many messages returns."""

    def __aiter__(self) -> AsyncIterator[object]: ...


def stream_invoker(endpoint: Endpoint) -> Handler:
    """Adapt a user's streaming function to `Handler`, for each of the three shapes."""
    signature, function = endpoint.signature, endpoint.function
    takes_request = signature.request_type is not None or endpoint.takes_many
    gives_many = signature.shape is not Shape.CLIENT_STREAM

    async def invoke(call: Call) -> object:
        exchange = cast("_Exchange", call.stream)
        message: object = None
        if endpoint.takes_many:
            message = Requests(call, exchange)
        elif takes_request:
            message = through(call, call.message, out=False)
        else:
            message = call.message  # refuses a payload where none is declared
        exchange.served.accept(call)
        call.began = True
        replies = _Replies(call, exchange)
        given: tuple[object, ...] = (message,) if takes_request else ()
        result = function(*given, call) if signature.takes_call else function(*given)
        if gives_many:
            await replies.send_all(result)
        else:
            await replies.send(await cast("Awaitable[object]", result))
        return None

    return invoke
