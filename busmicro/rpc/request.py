"""One request that runs: from the message that came to the one answer that goes out.

A request's way: `Binding.on_request` (in the read loop: may it be answered, is there room?) → its
first step, `Request.run` → wrappers → decode → the user's function → encode → reply.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from busmicro.call import Call, Decode, Handler, enter_call, received
from busmicro.codecs import Coder
from busmicro.errors import CallError, DeadlineExceeded, Unimplemented
from busmicro.rpc.answering import encode_reply, explain, read_asked, reply_block
from busmicro.rpc.awake import out_of_time
from busmicro.rpc.handlers import Endpoint

if TYPE_CHECKING:
    from busmicro.rpc.server import RpcServer

_MOST_SPELLINGS = 32


class _Travels(NamedTuple):
    """How the messages of an endpoint travel for callers of one content type."""

    decode: Decode
    """Of requests."""
    encoder: Coder
    """Of replies."""
    reply_block: bytes
    """What replies say of themselves: nothing if they are JSON."""


class Binding:
    """An endpoint that listens: turns messages into requests."""

    __slots__ = ("chain", "endpoint", "server", "travels")

    def __init__(self, server: RpcServer, endpoint: Endpoint, chain: Handler) -> None:
        self.server = server
        self.endpoint = endpoint
        self.chain = chain
        self.travels: dict[str, _Travels] = {}
        """By the content type that a request says it has."""

    def learn(self, content_type: str) -> _Travels:
        """Find out how messages travel that come with a content type.

        Raises:
            CodecError: Requests do not travel that way.
        """
        decode = self.endpoint.requests.require(content_type).decode
        encoder = self.endpoint.replies.find(content_type) or self.endpoint.replies.default
        found = _Travels(decode, encoder, reply_block(encoder.content_type))
        if len(self.travels) < _MOST_SPELLINGS:
            self.travels[content_type] = found
        return found

    def on_request(self, _subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        """Take one message off the wire."""
        server = self.server
        if server.admit(reply):
            request = Request(self, reply, header, payload)
            server.own(request)
            server.first_steps.add(request)


class Request:
    """One request that runs: answered exactly once, by its handler or by what ends it."""

    __slots__ = (
        "answered",
        "arrived",
        "binding",
        "deadline",
        "header",
        "is_set",
        "key",
        "payload",
        "reply",
        "started",
        "task",
    )

    def __init__(self, binding: Binding, reply: bytes, header: bytes, payload: bytes) -> None:
        self.binding = binding
        self.reply = reply
        self.header = header
        self.payload = payload
        self.arrived = self.deadline = binding.server.awake.arrived()
        self.answered = False
        self.is_set = False
        self.started = False
        self.key = b""
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Work the request through the chain and answer it."""
        self.started = True
        call: Call | None = None
        binding = self.binding
        endpoint, server = binding.endpoint, binding.server
        error = ""
        try:
            travels = self._read_header(binding)
            call = received(endpoint.spec, travels.decode, self.payload, self.header, self.deadline)
            enter_call(call)
            message = await binding.chain(call)
            payload = encode_reply(endpoint.spec, travels.encoder, message)
            header = travels.reply_block
            if call.has_reply_headers:
                header = reply_block(travels.encoder.content_type, call)
            if not server.transport.writable:
                await server.transport.drained()
            if not self.answered:
                self.answered = True
                server.answer(self.reply, payload, header)
        except (Exception, asyncio.CancelledError) as failure:
            told = explain(failure, endpoint.spec, began=call is not None and call.began)
            error = str(told)
            self._answer_error(told)
        finally:
            server.timers.drop(self)
            endpoint.figures.count(time.monotonic() - self.arrived, error)
            server.done(self)
            self.task, self.payload, self.header = None, b"", b""

    def _read_header(self, binding: Binding) -> _Travels:
        """Find out how messages travel, and by when the request must be done."""
        content_type, timeout, stream = read_asked(self.header)
        endpoint = binding.endpoint
        if stream is not None:
            raise Unimplemented(f"{endpoint.name} does not stream: call it", not_run=True)
        self.deadline = self.arrived + (endpoint.timeout if timeout is None else timeout)
        if time.monotonic() >= self.deadline:
            raise out_of_time(self.arrived)
        return binding.travels.get(content_type) or binding.learn(content_type)

    def waits(self) -> None:
        """Set the deadline; a handler that never waits is done before one could come."""
        self.binding.server.timers.set(self, self.deadline)

    def _answer_error(self, error: CallError) -> None:
        if not self.answered:
            self.answered = True
            self.binding.server.answer_error(self.reply, error)

    def expire(self) -> None:
        """Tell the caller that the time is up, and cancel the handler."""
        self.end(DeadlineExceeded("the handler did not finish in time"))

    def end(self, told: CallError | None) -> None:
        """Cancel the handler; the caller is told so, or has gone and is told nothing."""
        if told is not None:
            self._answer_error(told)
        self.answered = True
        if self.task is not None:
            self.task.cancel()
        elif not self.started:
            self.binding.server.done(self)
