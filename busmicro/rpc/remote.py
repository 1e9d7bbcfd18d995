"""An endpoint as a caller sees it: what is fixed for it, made once and kept.

Subject, coder, chain and header lines do not change from call to call, so a call looks them up in
one step and spends its time on what does: encode, stamp, publish, wait, decode.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from pydantic_core import from_json

from busmicro.bus import Bus
from busmicro.call import Call, Handler, Spec
from busmicro.codecs import JSON, Coder, Coders
from busmicro.errors import (
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
    VERSION_LINE,
    Headers,
    encode_line,
    encode_lines,
    find,
)
from busmicro.rpc.handlers import DEFAULT_TIMEOUT
from busmicro.rpc.server import unknown_endpoint
from busmicro.rpc.wire import ERROR_MARK, decode_error
from busmicro.transport import Reply, check_node

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


class ReplyDecoder:
    """Decodes replies of one type, by the content type that they say they have."""

    def __init__(self, coders: Coders | None) -> None:
        self._coders = coders
        if coders is None:
            self._usual: Callable[[bytes], object] = _untyped_json
        else:
            self._usual = (coders.find("") or coders.default).decode

    def decode(self, header: bytes, payload: bytes) -> object:
        """Turn a reply into a message.

        Raises:
            DataLoss: It is not what this call expects.
        """
        try:
            if not header:
                return self._usual(payload)
            content_type = find(header, header.lower(), FIND_CONTENT_TYPE).decode(
                "utf-8", "replace"
            )
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


def returned(returns: object) -> ReplyDecoder:
    """Make the decoder for what a caller says it expects.

    Raises:
        InvalidArgument: Replies cannot be of that type.
    """
    if returns is None:
        return ReplyDecoder(None)
    try:
        return ReplyDecoder(Coders(returns))
    except SetupError as wrong:
        raise InvalidArgument(f"returns={returns!r}: {wrong}", not_run=True) from wrong


class Remote:
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

    send.leaves_call_alone = True  # type: ignore[attr-defined]

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
        if self._node:
            raise Unavailable(f"{spec.service} has no node {self._node}", not_run=True) from failure
        if subject.encode() == self._subject:
            gone = f"the node that served {failure.subject} has just gone"
            raise Unavailable(gone, not_run=True) from failure
        found: bytes = subject.encode()
        return found
