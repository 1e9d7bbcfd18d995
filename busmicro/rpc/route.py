"""Where an endpoint is, and what every request to it says: fixed for it, made once and kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from busmicro.bus import Bus
from busmicro.call import Call, Spec
from busmicro.codecs import JSON, Coder
from busmicro.errors import (
    CodecError,
    Disconnected,
    InvalidArgument,
    NoResponders,
    SetupError,
    Unavailable,
)
from busmicro.headers import CALLER, CONTENT_TYPE, VERSION_LINE, encode_line, encode_lines
from busmicro.rpc.handlers import DEFAULT_TIMEOUT
from busmicro.rpc.server import unknown_endpoint
from busmicro.transport import check_node

T = TypeVar("T")

_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a client assumes where a call does not say."""

    timeout: float = DEFAULT_TIMEOUT
    """Seconds for the whole call, attempts and pauses included, and for opening a stream; more than
    0, at most 86,400."""
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


class Route:
    """The way to an endpoint."""

    def __init__(
        self, bus: Bus, spec: Spec, coder: Coder, options: CallOptions, caller: str
    ) -> None:
        self.spec = spec
        self.timeout = options.timeout
        """Seconds for a call that does not say."""
        self._bus = bus
        self._encode = coder.encode
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
        """Sent with every request, besides its own."""
        fixed = encode_line(CALLER, caller) if caller else b""
        if coder.content_type != JSON:
            fixed += encode_line(CONTENT_TYPE, coder.content_type)
        self._block_start = VERSION_LINE + fixed
        self._usual_lines = encode_lines(self.headers.items())

    def encode(self, message: object) -> bytes:
        """Encode a request.

        Raises:
            InvalidArgument: It is not what the client said that it sends. Nothing was sent.
        """
        try:
            return self._encode(message)
        except CodecError as wrong:
            raise InvalidArgument(str(wrong), details=wrong.details, not_run=True) from wrong

    def lines(self, call: Call) -> bytes:
        """Write the headers of a call as the lines of a block."""
        given = call.besides(self.headers)
        if given is not None:
            if not given:
                return self._usual_lines
            if self.headers.keys().isdisjoint(given):
                return self._usual_lines + encode_lines(given.items())
        return encode_lines(call.headers.items_by_name.items()) if call.has_headers else b""

    async def elsewhere(
        self,
        attempt: Callable[[], Awaitable[T]],
        deadline: float,
        nobody: NoResponders | Disconnected,
    ) -> T:
        """Deal with the rare cases: another subject, or a node that is still to come.

        Args:
            attempt: Sends the request to wherever this route leads by then.
            deadline: When to give up, seconds of the loop's clock.
            nobody: Why the first attempt failed.

        Raises:
            Unimplemented: The service lives and does not have this endpoint.
            Unavailable: Nobody is there.
        """
        if isinstance(nobody, NoResponders) and (found := await self._look_up(nobody)):
            self._subject = found
            return await attempt()
        if self._wait and nobody.not_run:
            return await self._patiently(attempt, deadline)
        raise nobody

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Try until the connection is there and a node is there, or the time is up."""
        pause = _FIRST_WAIT
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_WAIT)
            try:
                return await attempt()
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
