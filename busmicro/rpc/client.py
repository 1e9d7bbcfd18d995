"""The caller's end of a call.

A call's way: `Client.call` → the composed wrappers → `Remote.send`: encode, stamp headers, take a
reply slot, publish → the reply, decoded, or the error it carries, raised as the same class.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Generic, Never, Self, cast, overload

from typing_extensions import TypeVar  # Python 3.11's own has no default

from busmicro.bus import Bus
from busmicro.call import Call, Kind, Side, Spec, Wrapper, asked, compose, current_call
from busmicro.codecs import Coder, Coders
from busmicro.endpoint import (
    EndpointOptions,
    Shape,
    Signature,
    options_of,
    public_methods,
    read_signature,
)
from busmicro.errors import CallError, CodecError, InvalidArgument, SetupError, Unavailable
from busmicro.rpc.callstream import CallStream
from busmicro.rpc.held import HeldStream, Source, call_with_many
from busmicro.rpc.opening import StreamOptions, StreamRoute
from busmicro.rpc.remote import Remote, ReplyDecoder, returned
from busmicro.rpc.route import CallOptions, Route
from busmicro.session import Session
from busmicro.transport import check_endpoint, check_service
from busmicro.wrappers import CircuitBreaker, ConcurrencyLimit, Hedge, Only, RateLimit, Retry

T = TypeVar("T")
S = TypeVar("S", default=Never)
R = TypeVar("R", default=object)

_MOST_REMOTES = 10_000
_OF_ATTEMPTS = (Hedge, CircuitBreaker, ConcurrencyLimit, RateLimit)


class Answers(list[T], Generic[T]):
    """What `call_all` gathered: the replies, in the order of their nodes' ids."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[str] = []
        """The ids of the nodes that replied, in the order of their replies."""
        self.failures: dict[str, CallError] = {}
        """What went wrong, by node id, where a node did not reply or replied with an error."""


class Caller:
    """Calls services by name, on a connection that somebody else opens and closes."""

    def __init__(
        self, bus: Bus, *, wrappers: Sequence[Wrapper], options: CallOptions, name: str
    ) -> None:
        self._bus = bus
        self._wrappers = tuple(wrappers)
        self._chain = with_default_retry(wrappers)
        self._options = options
        self._name = name
        self._remotes: dict[tuple[object, ...], Remote] = {}

    @property
    def bus(self) -> Bus:
        """The connection this client uses."""
        return self._bus

    def with_options(
        self,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        idempotent: bool | None = None,
        wait_for_ready: bool | None = None,
        node: str | None = None,
    ) -> Self:
        """Return a client with other defaults and the same connection; this one stays as it is.

        Args:
            timeout: Seconds for a call.
            headers: Sent with every call, in place of those of this client.
            content_type: How requests travel, such as `application/msgpack`.
            idempotent: Are calls safe to run twice?
            wait_for_ready: Wait for a connection and for a node instead of failing at once?
            node: The id of the one node to ask; empty for any.
        """
        given = {
            "timeout": timeout,
            "headers": headers,
            "content_type": content_type,
            "idempotent": idempotent,
            "wait_for_ready": wait_for_ready,
            "node": node,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        other = copy(self)
        other._options = replace(self._options, **changes)  # type: ignore[arg-type]  # noqa: SLF001
        other._remotes = {}  # noqa: SLF001 - its own class
        return other

    # --- calls ----------------------------------------------------------------------------------

    @overload
    async def call(
        self,
        service: str,
        endpoint: str,
        message: object = None,
        *,
        returns: type[T],
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> T: ...

    @overload
    async def call(
        self,
        service: str,
        endpoint: str,
        message: object = None,
        *,
        returns: None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> object: ...

    async def call(
        self,
        service: str,
        endpoint: str,
        message: object = None,
        *,
        returns: type[T] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        idempotent: bool | None = None,
    ) -> T | object:
        """Call an endpoint and return its reply.

        Args:
            service: The service, by name.
            endpoint: The endpoint, like `hello` or `Greeter.hello`.
            message: The request; `None` for an endpoint that takes none.
            returns: The type of the reply; left out, JSON comes back as builtins.
            timeout: Seconds for all of it; never more than the call being served has left.
            headers: Sent with this call, besides the client's own.
            idempotent: Is it safe to run twice?

        Returns:
            The reply, validated.

        Raises:
            CallError: Of the class that the handler raised, or that says what went wrong on the
                way: `Unavailable`, `DeadlineExceeded`, `Unimplemented`, …  `not_run` tells whether
                the handler certainly did not run.

        Cancelled: the node that runs the call is told, and cancels its handler.
        """
        safe = self._options.idempotent if idempotent is None else idempotent
        key = (service, endpoint, type(message), returns, safe)
        remote = self._remotes.get(key)
        if remote is None:
            remote = self._remote(
                service, endpoint, type(message), returned(returns), idempotent=safe
            )
            if len(self._remotes) >= _MOST_REMOTES:
                self._remotes.clear()
            self._remotes[key] = remote
        return await self._start(remote, message, timeout, headers)

    def _remote(
        self,
        service: str,
        endpoint: str,
        message_type: object,
        reply: ReplyDecoder,
        *,
        idempotent: bool,
    ) -> Remote:
        spec, coder = self._address(
            service, endpoint, Kind.UNARY, message_type, idempotent=idempotent
        )
        remote = Remote(self._bus, spec, coder, reply, self._options, self._name)
        remote.chain = compose(self._chain, remote.send)
        return remote

    def _address(
        self, service: str, endpoint: str, kind: Kind, message_type: object, *, idempotent: bool
    ) -> tuple[Spec, Coder]:
        """Check what is to be called, and how messages travel there."""
        try:
            name = (check_service(service), check_endpoint(endpoint))
            requests = Coders(message_type)
            coder = requests.require(self._options.content_type or requests.default.content_type)
        except (SetupError, CodecError) as wrong:
            raise InvalidArgument(str(wrong), not_run=True) from wrong
        spec = Spec(
            service=name[0],
            endpoint=name[1],
            kind=kind,
            side=Side.CLIENT,
            idempotent=idempotent,
        )
        return spec, coder

    def _start(
        self,
        remote: Remote,
        message: object,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> Awaitable[object]:
        if timeout is None:
            timeout = remote.timeout
        elif not 0 < timeout <= 86_400:
            raise InvalidArgument(f"timeout={timeout}: say seconds, more than 0", not_run=True)
        call = self._call(remote, message, time.monotonic() + timeout, headers)
        return remote.chain(call)

    def _call(
        self,
        route: Route,
        message: object,
        deadline: float | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        """Make the call of a request: with the client's headers, and what the one served gives."""
        given = dict(headers) if headers else None  # whose it is may change it meanwhile
        call = asked(route.spec, message, route.headers, given, deadline)
        parent = current_call()
        if parent is not None:
            if parent.deadline is not None:
                until = parent.deadline
                call.deadline = until if deadline is None else min(deadline, until)
            parent.pass_on_trace(call)
        return call

    async def call_all(
        self,
        service: str,
        endpoint: str,
        message: object = None,
        *,
        returns: type[T],
        timeout: float | None = None,
    ) -> Answers[T]:
        """Call an endpoint of every node of a service, at once.

        Args:
            service: The service, by name.
            endpoint: The endpoint.
            message: The request that every node gets.
            returns: The type of the replies.
            timeout: Seconds for all of it; nodes that are not done by then are failures.

        Returns:
            The replies, and the failures by node id.

        Raises:
            Unavailable: No node of the service is up.
        """
        budget = self._options.timeout if timeout is None else timeout
        end = time.monotonic() + budget
        record = await self._bus.discovery.service(service)
        if record is None or not record.nodes:
            raise Unavailable(f"no node of {service} is up", not_run=True)
        left = max(end - time.monotonic(), 0.001)
        nodes = [node.id for node in record.nodes]
        tasks = []
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                one = self.with_options(node=node, timeout=left)
                tasks.append(group.create_task(_attempt(one, service, endpoint, message, returns)))
        answers: Answers[T] = Answers()
        for node, task in zip(nodes, tasks, strict=True):
            outcome = task.result()
            if isinstance(outcome, CallError):
                answers.failures[node] = outcome
            else:
                answers.append(outcome)
                answers.nodes.append(node)
        return answers

    # --- streams --------------------------------------------------------------------------------

    def stream(
        self,
        service: str,
        endpoint: str,
        message: object = None,
        *,
        sends: type[S] | None = None,
        returns: type[R] | None = None,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Session[CallStream[S, R]]:
        """Open a stream: `async with client.stream(…) as stream: async for reply in stream: …`.

        Leaving the block before the end cancels what the service does.

        Args:
            service: The service, by name.
            endpoint: The endpoint, like `Chat.talk`.
            message: The request of an endpoint that takes one; sent on opening.
            sends: The type of what `stream.send` takes, for an endpoint that takes many.
            returns: The type of what comes; left out, JSON comes as builtins.
            timeout: Seconds for all of it; left out, it may take for ever, but no longer than the
                call being served. Opening it takes at most the client's own timeout.
            idle_timeout: Seconds without a message, either way, after which it is ended.
            headers: Sent on opening, besides the client's own.

        Returns:
            What opens it, in an `async with` block; `CallError`s are raised there.

        Raises:
            InvalidArgument: A name, type or time that cannot be meant.
        """
        if message is not None and sends is not None:
            raise InvalidArgument("say message= or sends=, not both", not_run=True)
        opening = StreamOptions(
            sends=type(message) if sends is None else sends,
            reply=returned(returns),
            sends_one=sends is None,
            idle_timeout=idle_timeout,
        )
        safe = self._options.idempotent
        route = self._stream_route(service, endpoint, opening, idempotent=safe)
        return cast("Session[CallStream[S, R]]", self._session(route, message, timeout, headers))

    def _stream_route(
        self, service: str, endpoint: str, opening: StreamOptions, *, idempotent: bool
    ) -> StreamRoute:
        spec, coder = self._address(
            service, endpoint, Kind.STREAM, opening.sends, idempotent=idempotent
        )
        return StreamRoute(self._bus, spec, coder, self._options, self._name, opening)

    def _session(
        self,
        route: StreamRoute,
        message: object,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> Session[CallStream[object, object]]:
        deadline = None
        if timeout is not None:
            if not 0 < timeout <= 86_400:
                raise InvalidArgument(f"timeout={timeout}: say seconds, more than 0", not_run=True)
            deadline = time.monotonic() + timeout
        call = self._call(route, message, deadline, headers)
        chain = partial(compose, self._chain)
        return Session(chain, call, route.open, lambda stream: stream.raised)

    def stub(self, cls: type[T], *, service: str) -> T:
        """Make an object of a service's class whose methods are calls.

        Args:
            cls: The class that the service handles, or one with the same methods; its constructor
                does not run.
            service: The service, by name.

        Returns:
            An object that type checkers take for a `cls`.

        Raises:
            SetupError: A method's signature does not do; the text names the fix.
        """
        methods: dict[str, object] = {}
        for name, function in public_methods(cls).items():
            signature = read_signature(function.__get__(object()))
            options = options_of(function)
            endpoint = options.name or f"{cls.__name__}.{name}"
            make = self._method if signature.shape is Shape.UNARY else self._stream_method
            methods[name] = make(service, endpoint, signature, options)
        return cast("T", object.__new__(type(f"{cls.__name__}Stub", (cls,), methods)))

    def _method(
        self,
        service: str,
        endpoint: str,
        signature: Signature,
        options: EndpointOptions,
    ) -> object:
        reply = ReplyDecoder(Coders(signature.reply_type))
        remote = self._remote(
            service,
            endpoint,
            signature.request_type,
            reply,
            idempotent=options.idempotent or self._options.idempotent,
        )
        remote.timeout = options.timeout or remote.timeout

        if signature.request_type is None:

            async def call_without_request(_self: object) -> object:
                return await self._start(remote, None, None, None)

            return call_without_request

        async def call(_self: object, request: object) -> object:
            return await self._start(remote, request, None, None)

        return call

    def _stream_method(
        self,
        service: str,
        endpoint: str,
        signature: Signature,
        options: EndpointOptions,
    ) -> object:
        sends_many = signature.shape in (Shape.CLIENT_STREAM, Shape.BOTH)
        opening = StreamOptions(
            sends=signature.request_type,
            reply=ReplyDecoder(Coders(signature.reply_type)),
            sends_one=not sends_many,
        )
        idempotent = options.idempotent or self._options.idempotent
        route = self._stream_route(service, endpoint, opening, idempotent=idempotent)

        def session(request: object = None) -> Session[CallStream[object, object]]:
            return self._session(route, request, options.timeout, None)

        if signature.shape is Shape.CLIENT_STREAM:

            async def send_many(_self: object, requests: Source) -> object:
                return await call_with_many(session(), requests)

            return send_many

        def iterate(_self: object, request: object = None) -> HeldStream:
            if sends_many:
                return HeldStream(self._bus.tasks, session, cast("Source", request))
            return HeldStream(self._bus.tasks, partial(session, request), None)

        return iterate


def with_default_retry(wrappers: Sequence[Wrapper]) -> tuple[Wrapper, ...]:
    """Add a `Retry` unless there is one: around what has to see every attempt, else innermost."""
    given = [wrapper.wrapper if isinstance(wrapper, Only) else wrapper for wrapper in wrappers]
    if any(isinstance(wrapper, Retry) for wrapper in given):
        return tuple(wrappers)
    sees_attempts = (isinstance(wrapper, _OF_ATTEMPTS) for wrapper in given)
    at = next((at for at, sees in enumerate(sees_attempts) if sees), len(given))
    return (*wrappers[:at], Retry(), *wrappers[at:])


async def _attempt(
    client: Caller, service: str, endpoint: str, message: object, returns: type[T]
) -> T | CallError:
    try:
        return await client.call(service, endpoint, message, returns=returns)
    except CallError as failure:
        return failure
