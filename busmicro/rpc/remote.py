"""A unary endpoint as a caller sees it.

Subject, coder, chain and header lines do not change from call to call, so a call looks them up in
one step and spends its time on what does: encode, stamp, publish, wait, decode.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

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
)
from busmicro.headers import FIND_CONTENT_TYPE, find
from busmicro.rpc.route import CallOptions, Route
from busmicro.rpc.wire import ERROR_MARK, decode_error
from busmicro.transport import Reply

_MOST_BLOCKS, _LONGEST_BLOCK_BYTES = 32, 256


class ReplyDecoder:
    """Decodes replies of one type, by the content type that they say they have."""

    def __init__(self, coders: Coders | None) -> None:
        self._coders = coders
        if coders is None:
            self.usual: Callable[[bytes], object] = _untyped_json
        else:
            self.usual = (coders.find("") or coders.default).decode
        self._known = {b"": self.usual}
        """By header block: most services send the same one with every reply."""

    def decoder(self, header: bytes) -> Callable[[bytes], object]:
        """Choose the function that decodes what comes with this header block.

        Raises:
            CodecError: Messages of this type do not travel that way.
        """
        known = self._known.get(header)
        if known is None:
            known = self._choose(header)
            if len(self._known) < _MOST_BLOCKS and len(header) < _LONGEST_BLOCK_BYTES:
                self._known[header] = known
        return known

    def _choose(self, header: bytes) -> Callable[[bytes], object]:
        content_type = find(header, header.lower(), FIND_CONTENT_TYPE).decode("utf-8", "replace")
        if self._coders is not None:
            return self._coders.require(content_type).decode
        return _untyped(content_type)


def not_expected(wrong: CodecError) -> DataLoss:
    """Say that a reply is not what this client expects."""
    return DataLoss(f"the reply is not what was expected: {wrong}", details=wrong.details)


def _untyped_json(payload: bytes) -> object:
    try:
        return from_json(payload) if payload else None
    except ValueError as wrong:
        raise CodecError(f"not JSON: {wrong}; say returns=bytes to have it as it is") from wrong


def _untyped(content_type: str) -> Callable[[bytes], object]:
    if not content_type or content_type.partition(";")[0].strip().lower() == JSON:
        return _untyped_json
    coder = Coders(object).find(content_type)
    return bytes if coder is None else coder.decode


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


class Remote(Route):
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
        super().__init__(bus, spec, coder, options, caller)
        self.chain: Handler = self.send
        self._decoder, self._usual = reply.decoder, reply.usual
        self._replies, self._transport = bus.replies, bus.transport

    async def send(self, call: Call) -> object:
        """Send the request once and return the reply; the innermost of every chain."""
        deadline = call.deadline or time.monotonic() + self.timeout
        payload = self.encode(call.message)
        if not self._transport.writable:
            await self._room(deadline)
        block = self._block(call, deadline)
        try:
            slot = self._replies.send(self._subject, payload, block, deadline)
            try:
                header, body = await slot.future
            except (DeadlineExceeded, asyncio.CancelledError):
                self._replies.abandon(slot, self._cancel)
                raise
            finally:
                self._replies.let_go(slot)
        except (NoResponders, Disconnected) as nobody:
            header, body = await self.elsewhere(
                lambda: self._again(call, payload, deadline), deadline, nobody
            )
        if header:
            if ERROR_MARK in header:
                raise decode_error(header, body, self.spec.service)
            call.replied_with(header)
        try:
            return (self._decoder(header) if header else self._usual)(body)
        except CodecError as wrong:
            raise not_expected(wrong) from wrong

    send.leaves_call_alone = True  # type: ignore[attr-defined]

    async def _room(self, deadline: float) -> None:
        """Return when the server keeps up with what is sent."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._transport.drained()
        except TimeoutError as late:
            told = "the server did not keep up, the request was not sent"
            raise DeadlineExceeded(told, not_run=True) from late

    def _again(self, call: Call, payload: bytes, deadline: float) -> Awaitable[Reply]:
        block = self._block(call, deadline)
        subject = self._subject
        return self._replies.request(
            subject, payload, block, deadline=deadline, abandon=self._cancel
        )

    def _block(self, call: Call, deadline: float) -> bytes:
        """Write the header block of a request."""
        left_ms = int((deadline - time.monotonic()) * 1000)
        if left_ms <= 0:
            if deadline <= time.monotonic():
                raise DeadlineExceeded("no time was left to make the call", not_run=True)
            left_ms = 1
        return b"%bBus-Timeout: %d\r\n%b\r\n" % (self._block_start, left_ms, self.lines(call))
