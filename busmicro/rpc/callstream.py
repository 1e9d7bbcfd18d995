"""A stream as its caller uses it: send, say that there is no more, iterate over what comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from busmicro.call import Call, through
from busmicro.errors import CallError, CodecError, DataLoss
from busmicro.headers import Headers
from busmicro.rpc.halves import Frame
from busmicro.rpc.link import Link
from busmicro.rpc.remote import not_expected

S = TypeVar("S")
R = TypeVar("R")


class CallStream(Generic[S, R]):
    """A stream that is open: what `async with client.stream(…) as stream` gives.

    Sending and receiving may go on at the same time, in two tasks; what is not taken by one end
    makes the other wait.
    """

    def __init__(
        self,
        link: Link,
        call: Call,
        encode: Callable[[object], bytes],
        decode: Callable[[bytes], object],
    ) -> None:
        """Made by `Client.stream`, not by hand."""
        self._link = link
        self._call = call
        self._encode = encode
        self._decode = decode
        self._tapped = call.has_taps
        self.raised: CallError | None = None
        """The failure that has ended the stream, once it was raised."""

    @property
    def headers(self) -> Headers:
        """The headers that the stream was opened with."""
        return self._call.headers

    @property
    def reply_headers(self) -> Headers:
        """The headers that the service has sent: on accepting, with its first message, at its end.

        Each of them may add some.
        """
        return self._call.reply_headers

    async def send(self, message: S) -> None:
        """Send a message, as soon as the service has room for it.

        Args:
            message: What; cut and joined again if it is larger than NATS takes at once.

        Raises:
            CallError: The stream is over; how it ended. The message was not sent.
            InvalidArgument: It is not what this client said that it sends. Not sent.
        """
        given: object = message
        if self._tapped:
            given = through(self._call, given, out=True)
        payload = self._encode(given)
        if self._link.send_now(payload):
            return
        try:
            await self._link.send(payload)
        except CallError as failure:
            self._meet(failure)
            raise

    async def close_send(self) -> None:
        """Say that no more messages come; the service's messages still do.

        Messages that other tasks are sending go first.
        """
        await self._link.close_send()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        """Return the next message of the service.

        Raises:
            CallError: The stream did not end well; all messages that came before were returned.
            DataLoss: A message is not what this client expects. The stream goes on.
            StopAsyncIteration: It ended well.
        """
        _kind, header, payload = self._link.ready() or await self._receive()
        if header:
            self._learn(header)
        try:
            message = self._decode(payload)
        except CodecError as wrong:
            raise not_expected(wrong) from wrong
        if self._tapped:
            message = through(self._call, message, out=False)
        return message  # type: ignore[return-value]  # `decode` makes an R; a cast would cost 50 ns

    async def _receive(self) -> Frame:
        try:
            frame = await self._link.receive()
        except CallError as failure:
            self._meet(failure)
            raise
        if frame is None:
            self._learn(self._link.trailers)
            raise StopAsyncIteration
        return frame

    def _meet(self, failure: CallError) -> None:
        if self._link.end.outcome is not None:  # else the stream goes on, or has ended well
            self.raised = failure

    def _learn(self, header: bytes) -> None:
        if header:
            self._call.reply_headers.update(Headers(header))

    async def result(self) -> R:
        """Return the one reply of an endpoint that takes many messages and gives one.

        Says that no more messages come, unless that was said.

        Raises:
            CallError: The stream did not end well.
            DataLoss: It gave none, or several.
        """
        await self.close_send()
        return await self.only_reply()

    async def only_reply(self) -> R:
        """Return the one reply, while somebody else sends; see `result`."""
        replies: list[R] = []
        async for reply in self:
            replies.append(reply)
            if len(replies) > 1:
                raise DataLoss("several replies came where one was expected")
        if not replies:
            raise DataLoss("no reply came where one was expected")
        return replies[0]

    @property
    def is_over(self) -> bool:
        """Is it known how it ended?"""
        return self._link.end.over

    def cancel(self, why: CallError) -> None:
        """End it now; the service cancels what it does. Not an error if it has ended."""
        self._link.end.cancel(why)

    def leave(self) -> None:
        """Raise the failure that has ended the stream; if it was raised before, that very one."""
        if self.raised is None and self._link.end.outcome is not None:
            self.raised = self._link.outcome()
        if self.raised is not None:
            raise self.raised
