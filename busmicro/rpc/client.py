"""The caller's end of a call.

A call's way: `Client.call` → the composed wrappers → `_Remote.send`: encode, stamp headers, take a
reply slot, publish → the reply, decoded, or the error it carries, raised as the same class.

What is fixed for an endpoint - subject, coders, chain - is made once and kept in a `_Remote`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Generic, Self, TypeVar, cast, overload

from pydantic_core import from_json

from busmicro.bus import Bus
from busmicro.call import Call, Handler, Kind, Side, Spec, Wrapper, compose, current_call
from busmicro.codecs import JSON, NOTHING, Coder, Coders
from busmicro.endpoint import (
    Shape,
    Signature,
    label,
    options_of,
    public_methods,
    read_signature,
)
from busmicro.errors import (
    CallError,
    CodecError,
    DataLoss,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    NoResponders,
    SetupError,
    Unavailable,
)
from busmicro.headers import (
    CALLER,
    CONTENT_TYPE,
    FIND_CONTENT_TYPE,
    TRACE,
    VERSION_LINE,
    Headers,
    encode_line,
    encode_lines,
    find,
)
from busmicro.rpc.handlers import DEFAULT_TIMEOUT
from busmicro.rpc.server import unknown_endpoint
from busmicro.rpc.wire import ERROR_MARK, decode_error
from busmicro.settings import Settings
from busmicro.transport import Reply, check_endpoint, check_node, check_service
from busmicro.wrappers import Retry

T = TypeVar("T")

_MOST_REMOTES = 10_000
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a client assumes where a call does not say."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for the whole call, attempts and pauses included; more than 0, at most 86,400."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every call."""
    content_type: str = ""
    """How requests travel; empty for what suits their type (JSON, protobuf, raw bytes)."""
    idempotent: bool = False
    """Are calls safe to run twice? Then more failures are worth another try."""
    wait_for_ready: bool = False
    """Wait, within the timeout, for a connection and for a node, instead of failing at once."""
    node: str = ""
    """The id of the one node to ask; empty for any."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 < self.timeout <= 86_400:
            raise SetupError(f"timeout={self.timeout}: say seconds, more than 0, at most 86,400")
        if self.node:
            check_node(self.node)


class Answers(list[T], Generic[T]):
    """What `call_all` gathered: the replies, in the order of their nodes' ids."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, CallError] = {}
        """What went wrong, by node id, where a node did not reply or replied with an error."""


class Client:
    """Calls services by name.

    Args:
        url: Where NATS is; left out, `BUSMICRO_NATS_URL` or `nats://127.0.0.1:4222`.
        wrappers: Put around every call, the first one outermost. A `Retry` of what certainly did
            not run is added innermost unless one is given.
        timeout: Seconds for a call that does not say.
        namespace: The prefix that the services were started with.
        wait_for_ready: Wait for a connection and for a node instead of failing at once.
        settings: Everything else; left out, read from `BUSMICRO_*`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        wrappers: Sequence[Wrapper] = (),
        timeout: float = DEFAULT_TIMEOUT,
        namespace: str | None = None,
        wait_for_ready: bool = False,
        settings: Settings | None = None,
    ) -> None:
        given = settings or Settings.load(nats_url=url, namespace=namespace)
        options = CallOptions(timeout=timeout, wait_for_ready=wait_for_ready)
        self._set_up(Bus(given), with_default_retry(wrappers), options, caller="")

    def _set_up(
        self, bus: Bus, wrappers: Sequence[Wrapper], options: CallOptions, *, caller: str
    ) -> None:
        self._bus = bus
        self._wrappers = tuple(wrappers)
        self._options = options
        self._caller = caller
        self._remotes: dict[tuple[object, ...], _Remote] = {}

    @classmethod
    def on(cls, bus: Bus, *, wrappers: Sequence[Wrapper], caller: str) -> Self:
        """Make a client that uses somebody else's connection and does not close it."""
        client = cls.__new__(cls)
        client._set_up(bus, with_default_retry(wrappers), CallOptions(), caller=caller)
        return client

    @property
    def bus(self) -> Bus:
        """The connection this client uses."""
        return self._bus

    async def __aenter__(self) -> Self:
        await self._bus.open(wait=self._options.wait_for_ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._bus.close()

    def with_options(
        self,
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = None,
        idempotent: bool | None = None,
        wait_for_ready: bool | None = None,
        node: str | None = None,
    ) -> Client:
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
        other = Client.__new__(Client)
        options = replace(self._options, **changes)  # type: ignore[arg-type]
        other._set_up(self._bus, self._wrappers, options, caller=self._caller)
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
            remote = self._remote(service, endpoint, type(message), _returned(returns), safe)
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
        idempotent: bool,
    ) -> _Remote:
        try:
            name = (check_service(service), check_endpoint(endpoint))
            requests = Coders(message_type)
            coder = requests.require(self._options.content_type or requests.default.content_type)
        except (SetupError, CodecError) as wrong:
            raise InvalidArgument(str(wrong), not_run=True) from wrong
        spec = Spec(
            service=name[0],
            endpoint=name[1],
            kind=Kind.UNARY,
            side=Side.CLIENT,
            idempotent=idempotent,
        )
        remote = _Remote(self._bus, spec, coder, reply, self._options, self._caller)
        remote.chain = compose(self._wrappers, remote.send)
        return remote

    def _start(
        self,
        remote: _Remote,
        message: object,
        timeout: float | None,
        headers: Mapping[str, str] | None,
    ) -> Awaitable[object]:
        if timeout is None:
            timeout = remote.timeout
        elif not 0 < timeout <= 86_400:
            raise InvalidArgument(f"timeout={timeout}: say seconds, more than 0", not_run=True)
        deadline = time.monotonic() + timeout
        given: Headers | None = None
        if headers:
            given = Headers({**remote.headers, **headers})
        elif remote.headers:
            given = Headers(remote.headers)
        parent = current_call()
        if parent is not None:
            deadline = min(deadline, parent.deadline or deadline)
            given = _pass_on_trace(parent, given)
        return remote.chain(Call(remote.spec, message, headers=given, deadline=deadline))

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
        return answers

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
            if signature.shape is not Shape.UNARY:
                methods[name] = _no_stream(label(function))
                continue
            options = options_of(function)
            endpoint = options.name or f"{cls.__name__}.{name}"
            methods[name] = self._method(service, endpoint, signature, options.idempotent, options.timeout)
        return cast("T", object.__new__(type(f"{cls.__name__}Stub", (cls,), methods)))

    def _method(
        self,
        service: str,
        endpoint: str,
        signature: Signature,
        idempotent: bool,
        timeout: float | None,
    ) -> object:
        reply = ReplyDecoder(Coders(signature.reply_type))
        remote = self._remote(
            service,
            endpoint,
            signature.request_type,
            reply,
            idempotent or self._options.idempotent,
        )
        remote.timeout = timeout or remote.timeout

        if signature.request_type is None:

            async def call_without_request(_self: object) -> object:
                return await self._start(remote, None, None, None)

            return call_without_request

        async def call(_self: object, request: object) -> object:
            return await self._start(remote, request, None, None)

        return call


def _no_stream(name: str) -> object:
    def refuse(*_args: object) -> object:
        raise SetupError(f"{name} streams, and this version of busmicro calls only unary endpoints")

    return refuse


def with_default_retry(wrappers: Sequence[Wrapper]) -> tuple[Wrapper, ...]:
    """Add a `Retry` innermost, unless there is one."""
    if any(isinstance(wrapper, Retry) for wrapper in wrappers):
        return tuple(wrappers)
    return (*wrappers, Retry())


async def _attempt(
    client: Client, service: str, endpoint: str, message: object, returns: type[T]
) -> T | CallError:
    try:
        return await client.call(service, endpoint, message, returns=returns)
    except CallError as failure:
        return failure


def _pass_on_trace(parent: Call, given: Headers | None) -> Headers | None:
    """Hand the trace of the call being served to the calls it makes; nothing else goes on."""
    if parent.has_headers:
        for name in TRACE:
            value = parent.headers.get(name)
            if value is not None:
                given = Headers({}) if given is None else given
                given.setdefault(name, value)
    return given


class ReplyDecoder:
    """Decodes replies of one type, by the content type that they say they have."""

    def __init__(self, coders: Coders | None) -> None:
        self._coders = coders
        self._usual = NOTHING.decode if coders is None else coders.default.decode
        if coders is not None and (json := coders.find("")) is not None:
            self._usual = json.decode
        if coders is None:
            self._usual = _untyped_json

    def decode(self, header: bytes, payload: bytes) -> object:
        """Turn a reply into a message.

        Raises:
            DataLoss: It is not what this call expects.
        """
        try:
            if not header:
                return self._usual(payload)
            content_type = find(header, header.lower(), FIND_CONTENT_TYPE).decode("utf-8", "replace")
            if self._coders is not None:
                return self._coders.require(content_type).decode(payload)
            return _untyped(content_type, payload)
        except CodecError as wrong:
            raise DataLoss(
                f"the reply is not what was expected: {wrong}", details=wrong.details
            ) from wrong


def _untyped_json(payload: bytes) -> object:
    try:
        return from_json(payload) if payload else None
    except ValueError as wrong:
        raise CodecError(f"not JSON: {wrong}; say returns=bytes to have it as it is") from wrong


def _untyped(content_type: str, payload: bytes) -> object:
    if not content_type or content_type.partition(";")[0].strip().lower() == JSON:
        return _untyped_json(payload)
    coder = Coders(object).find(content_type)
    return payload if coder is None else coder.decode(payload)


def _returned(returns: object) -> ReplyDecoder:
    if returns is None:
        return ReplyDecoder(None)
    try:
        return ReplyDecoder(Coders(returns))
    except SetupError as wrong:
        raise InvalidArgument(f"returns={returns!r}: {wrong}", not_run=True) from wrong


class _Remote:
    """An endpoint as a caller sees it: everything about it that no call changes."""

    def __init__(
        self,
        bus: Bus,
        spec: Spec,
        coder: Coder,
        reply: ReplyDecoder,
        options: CallOptions,
        caller: str,
    ) -> None:
        self.spec = spec
        self.timeout = options.timeout
        self.chain: Handler = self.send
        self._bus = bus
        self._encode = coder.encode
        self._reply = reply
        self._wait = options.wait_for_ready
        subjects = bus.subjects
        where = (
            subjects.node(spec.service, options.node, spec.endpoint)
            if options.node
            else subjects.rpc(spec.service, spec.endpoint)
        )
        self._node = options.node
        self._subject = where.encode()
        self._cancel = subjects.cancel(spec.service).encode()
        self.headers = dict(options.headers)
        fixed = encode_line(CALLER, caller) if caller else b""
        if coder.content_type != JSON:
            fixed += encode_line(CONTENT_TYPE, coder.content_type)
        self._block_start = VERSION_LINE + fixed
        self._usual_lines = encode_lines(self.headers.items())

    async def send(self, call: Call) -> object:
        """Send the request once and return the reply; the innermost of every chain."""
        deadline = call.deadline or time.monotonic() + self.timeout
        try:
            payload = self._encode(call.message)
        except CodecError as wrong:
            raise InvalidArgument(str(wrong), details=wrong.details, not_run=True) from wrong
        lines = b""
        if call.has_headers:
            given = call.headers.items_by_name
            same = given == self.headers  # then they are encoded already
            lines = self._usual_lines if same else encode_lines(given.items())
        try:
            header, body = await self._request(payload, lines, deadline)
        except (NoResponders, Disconnected) as nobody:
            header, body = await self._elsewhere(payload, lines, deadline, nobody)
        if header:
            if ERROR_MARK in header:
                raise decode_error(header, body, self.spec.service)
            call.reply_headers = Headers(header)
        return self._reply.decode(header, body)

    def _request(self, payload: bytes, lines: bytes, deadline: float) -> Awaitable[Reply]:
        left = deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("no time was left to make the call", not_run=True)
        return self._bus.replies.request(
            self._subject,
            payload,
            b"%bBus-Timeout: %d\r\n%b\r\n" % (self._block_start, left * 1000 or 1, lines),
            deadline=deadline,
            abandon=self._cancel,
        )

    async def _elsewhere(
        self, payload: bytes, lines: bytes, deadline: float, nobody: NoResponders | Disconnected
    ) -> Reply:
        """Deal with the rare cases: another subject, or a node that is still to come."""
        if isinstance(nobody, NoResponders) and (found := await self._look_up(nobody)):
            self._subject = found
            return await self._request(payload, lines, deadline)
        if self._wait and nobody.not_run:
            return await self._patiently(payload, lines, deadline)
        raise nobody

    async def _patiently(self, payload: bytes, lines: bytes, deadline: float) -> Reply:
        """Try until the connection is there and a node is there, or the time is up."""
        pause = _FIRST_WAIT
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
            try:
                return await self._request(payload, lines, deadline)
            except (NoResponders, Disconnected) as nobody:
                if not nobody.not_run or time.monotonic() + pause >= deadline:
                    raise

    async def _look_up(self, failure: NoResponders) -> bytes | None:
        """Find out why nobody listens.

        Returns:
            Where the endpoint is to be found: services of other frameworks choose their own
            subjects.

        Raises:
            Unimplemented: The service lives and does not have this endpoint.
            Unavailable: It does have it, on a node that is not there any more.
        """
        spec = self.spec
        subjects = await self._bus.discovery.lookup(spec.service)
        if not subjects:
            return None
        subject = subjects.get(spec.endpoint)
        if subject is None:
            raise unknown_endpoint(spec.service, spec.endpoint, list(subjects)) from failure
        if self._node or subject.encode() == self._subject:
            raise Unavailable(
                f"no node serves {failure.subject} any more", not_run=True
            ) from failure
        return subject.encode()
