"""The handler's end of a call: a request comes in, exactly one answer goes out.

What becomes of one request is in `request.py` for calls and in `serving.py` for streams.

Whatever happens, the caller hears of it: an unknown endpoint, a bad body, a reply too large, an
exception, a deadline that passes while the handler sleeps, a service that is stopping.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Protocol

from busmicro.bus import Bus
from busmicro.call import Wrapper, compose
from busmicro.errors import (
    BusmicroError,
    CallError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from busmicro.rpc.awake import Awake
from busmicro.rpc.firststep import FirstSteps
from busmicro.rpc.handlers import Endpoint, Endpoints, invoker
from busmicro.rpc.request import Binding
from busmicro.rpc.serving import Callers, StreamBinding, stream_invoker
from busmicro.rpc.wire import encode_error
from busmicro.transport import (
    QUEUE_GROUP,
    Subscription,
    Transport,
    require_allowed,
)

log = logging.getLogger("busmicro.rpc")

_BUSY_FOR = 0.05


class Running(Protocol):
    """A request that runs, call or stream."""

    reply: bytes
    """Where its caller listens."""
    key: bytes
    """Under which it is kept."""

    def end(self, told: CallError | None) -> None:
        """Cancel the handler; the caller is told so, or has gone and is told nothing."""
        ...


class RpcServer:
    """The endpoints of one node, and the requests that run there."""

    def __init__(self, service: str, node: str, endpoints: Endpoints, bus: Bus) -> None:
        self._service = service
        self._node = node
        self._endpoints = endpoints
        self.bus = bus
        self.transport: Transport = bus.transport
        self.timers = bus.timers
        self._subjects = bus.subjects
        self._max_running = bus.settings.max_running
        self.replies_allowed = bus.replies_allowed
        """Where answers may go."""
        self.refused_replies = 0
        """Requests that asked for an answer where none may go."""
        self.callers = Callers(bus.settings.max_streams_per_caller)
        """How many streams each caller has here."""
        self.awake = Awake(bus.transport)
        """Knows how old a request may be."""
        self._subscriptions: list[Subscription] = []
        self._bindings: list[Binding | StreamBinding] = []
        self._shared: list[Subscription] = []
        self._running: dict[bytes, Running] = {}
        self._stopped = False
        self._idle = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.first_steps = FirstSteps(self.loop)

    # --- life -----------------------------------------------------------------------------------

    async def start(self, wrappers: Sequence[Wrapper], *, away: bool = False) -> None:
        """Compose each endpoint's chain and listen; when this returns, requests arrive.

        Args:
            wrappers: Put around every handler.
            away: Take only requests that are meant for this node, until `join`.

        Raises:
            PermissionDenied: A subject may not be subscribed to; the text names it.
            Disconnected: The connection dropped meanwhile.
        """
        self.bus.tasks.spawn(self.awake.keep_looking(), name=f"{self._service} awake")
        if any(endpoint.streams for endpoint in self._endpoints):
            await self.bus.frames.start()
        for endpoint in self._endpoints:
            binding = self._bind(endpoint, wrappers)
            self._bindings.append(binding)
            subject = self._subjects.node(self._service, self._node, endpoint.name)
            self._listen(subject, binding.on_request)
        self._listen(self._subjects.node(self._service, self._node, "*"), self._on_unknown)
        self._listen(self._subjects.node(self._service, self._node, "*.*"), self._on_unknown)
        self._listen(self._subjects.cancel(self._service), self._on_cancel)
        if not away:
            self._listen_with_others()
        await self.transport.barrier()
        require_allowed(*self._subscriptions, *self._shared)

    def _bind(self, endpoint: Endpoint, wrappers: Sequence[Wrapper]) -> Binding | StreamBinding:
        if endpoint.streams:
            return StreamBinding(self, endpoint, compose(wrappers, stream_invoker(endpoint)))
        chain = compose(wrappers, invoker(endpoint.function, endpoint.signature))
        return Binding(self, endpoint, chain)

    def _listen(self, subject: str, callback: Callable[[bytes, bytes, bytes, bytes], None]) -> None:
        self._subscriptions.append(self.transport.subscribe(subject, callback))

    def _listen_with_others(self) -> None:
        for binding in self._bindings:
            subject = self._subjects.rpc(self._service, binding.endpoint.name)
            listening = self.transport.subscribe(subject, binding.on_request, queue=QUEUE_GROUP)
            self._shared.append(listening)

    async def join(self) -> None:
        """Take requests that any node may answer; not an error if it does."""
        if not (self._shared or self._stopped):
            self._listen_with_others()
            await self._pass_barrier("joining")

    async def leave(self) -> None:
        """Take no more requests that other nodes may answer; those that are here are answered."""
        for subscription in self._shared:
            self.transport.unsubscribe(subscription)
        self._shared.clear()
        await self._pass_barrier("leaving")

    async def _pass_barrier(self, doing: str) -> None:
        """Return when every request that was routed here is here; never fails."""
        try:
            await self.transport.barrier(timeout=2.0)
        except BusmicroError as failure:
            log.debug("%s without a connection: %s", doing, failure)

    async def stop(self, grace: float) -> int:
        """Take no more requests, finish those that run, then end the rest.

        Args:
            grace: Seconds that running requests get.

        Returns:
            How many had to be ended; their callers were told `unavailable`.
        """
        for subscription in self._subscriptions:
            self.transport.unsubscribe(subscription)
        self._subscriptions.clear()
        await self.leave()
        self._stopped = True
        await self._finish(grace)
        ended = len(self._running)
        self.end_all()
        return ended

    async def _finish(self, grace: float) -> None:
        self._idle.clear()
        if not self._running:
            return
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d requests still run after %s s, ending them", len(self._running), grace)

    def end_all(self) -> None:
        """End every running request now; callers are told."""
        for request in tuple(self._running.values()):
            request.end(Unavailable(f"{self._service} stopped before it was done"))

    @property
    def running(self) -> int:
        """Requests that run now."""
        return len(self._running)

    # --- requests -------------------------------------------------------------------------------

    def admit(self, reply: bytes, *, below: bool = False) -> bool:
        """Decide whether a request gets a task; where not, say why to whoever may be told.

        Args:
            reply: Where its answer goes.
            below: Do frames go one word below that, too?
        """
        if reply[:7] != b"_INBOX." and not self._may_answer(reply, below=below):
            return False
        if self._stopped:
            self.answer_error(reply, Unavailable(f"{self._service} is stopping", not_run=True))
            return False
        if len(self._running) >= self._max_running:
            self.answer_error(
                reply,
                ResourceExhausted(
                    f"{self._max_running} requests run on this node already",
                    retry_after=_BUSY_FOR,
                    not_run=True,
                ),
            )
            return False
        return True

    def _may_answer(self, reply: bytes, *, below: bool) -> bool:
        if not reply:
            log.debug("a request without a reply subject was dropped: nobody could be answered")
            return False
        allows = self.replies_allowed.allows_below if below else self.replies_allowed.allows
        if not allows(reply):
            self.refused_replies += 1
            if self.refused_replies & (self.refused_replies - 1) == 0:  # the 1st, 2nd, 4th, 8th, …
                log.warning(
                    "a request asked for its answer on %r, where this service must not publish "
                    "for others; dropped (%d so far)",
                    reply.decode("utf-8", "replace"),
                    self.refused_replies,
                )
            return False
        return True

    def owns(self, reply: bytes) -> bool:
        """Does a request with this reply subject run?"""
        return reply in self._running

    def own(self, request: Running) -> None:
        """Keep an admitted request under its reply subject, until it is done."""
        key = request.reply
        if key in self._running:  # two requests with one reply subject: both run, both answer
            key = b"%b %d" % (key, id(request))
        request.key = key
        self._running[key] = request

    def done(self, request: Running) -> None:
        """Forget a request that has ended."""
        self._running.pop(request.key, None)
        if not self._running:
            self._idle.set()

    def answer(self, reply: bytes, payload: bytes, header: bytes = b"") -> None:
        """Send an answer; one that the bus refuses becomes an error the caller can read."""
        try:
            self.transport.publish(reply, payload, b"", header)
        except CallError as refused:
            log.warning("a reply could not be sent: %s", refused)
            told = CallError.of(refused.code, f"the reply could not be sent: {refused.message}")
            self.answer_error(reply, told)

    def answer_error(self, reply: bytes, error: CallError) -> None:
        """Send a failure."""
        header, payload = encode_error(error, self._service)
        try:
            self.transport.publish(reply, payload, b"", header)
        except BusmicroError as refused:
            log.warning("a caller could not be told %s: %s", error, refused)

    def _on_unknown(self, subject: bytes, reply: bytes, _header: bytes, _payload: bytes) -> None:
        name = subject.decode("utf-8", "replace").removeprefix(
            self._subjects.node(self._service, self._node, "")
        )
        if name not in self._endpoints and self.admit(reply):
            self.answer_error(reply, unknown_endpoint(self._service, name, self._endpoints.names))

    def _on_cancel(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        request = self._running.get(payload)
        if request is not None:
            request.end(None)


def unknown_endpoint(service: str, name: str, known: Sequence[str]) -> Unimplemented:
    """Say that a service lives but does not have an endpoint, and which come close."""
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    said = f"{service} has no endpoint {name!r}{hint}"
    return Unimplemented(said, origin=service, not_run=True)
