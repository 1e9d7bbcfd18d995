"""The fast path: one TCP or TLS stream, split between nats-py and busmicro by subscription id.

nats-py connects, authenticates, negotiates TLS and pings through this object as through its own
transport.  What it never sees are the messages of busmicro's subscriptions (sid ``b<n>``): they go
straight from the socket to their callback, without nats-py's regex parser, its queue and task per
subscription and its header dict, which together cost more than all of busmicro
(`benchmarks/rpc.py` measures both).

How the bytes flow::

    socket ── data_received ──┬── MSG/HMSG with a known sid ──► Subscription.on_message
                              ├── PONG for our own PING ──────► barrier
                              ├── -ERR 'Permissions …' ───────► on_denied (and nats-py)
                              └── everything else ────────────► StreamReader ──► nats-py

    publish / nats-py write ──► one list ──► one write per turn of the event loop

Three things make it fast: one `bytes.find` and one `split` per message; messages of one turn of
the loop leave together, up to 32 to a system call; no task, future or queue between socket and
callback.

Three things keep it honest: a payload that spans many reads is collected in a list and joined once
(cost linear in its size); a callback that raises is logged and the loop goes on; a line that is
not NATS ends this connection, and the supervisor in `nats.py` makes the next.

One private name of nats-py is used, in `nats.py`: the attribute that holds this object
(`websocket.py` uses it too, and the id of a subscription).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias, cast
from urllib.parse import ParseResult

from nats.aio.transport import Transport as NatsPyTransport

from busmicro.errors import Disconnected, PayloadTooLarge, ResourceExhausted
from busmicro.transport.base import Subscription

log = logging.getLogger("busmicro.transport")

_PING: Final = b"PING\r\n"
_M, _H, _P, _MINUS = b"MHP-"
_MAX_LINE_BYTES: Final = 1024 * 1024
"""No control line is longer; an INFO with a thousand cluster URLs is 30 kB."""

_MAX_MESSAGE_BYTES: Final = 2**31
"""No server takes more, whatever its `max_payload`."""

_CLOSE_WITHIN: Final = 0.5
_HIGH_WATER_BYTES: Final = 1024 * 1024
"""More than this in the loop's buffer means that the server does not keep up."""
DEFAULT_MAX_PAYLOAD_BYTES: Final = 1024 * 1024

_BATCH: Final = 32
"""Messages that leave without waiting for the end of the turn: while the peer works on them, this
process makes the next.  64 calls in flight, one sweep: 47,000/s with one write a turn; a write
every 4 messages 53,000, every 8 59,000, every 16 65,000, every 32 66,000.  A turn that goes on
publishing doubles it each time: a write costs 18 µs, which is much for 32 events."""
_LARGEST_BATCH: Final = 512

OnDenied: TypeAlias = Callable[[str], None]
sids = itertools.count(1)


def sub_command(subscription: Subscription) -> bytes:
    """Write the SUB line of a subscription."""
    return b"SUB %b %b %b\r\n" % (
        subscription.subject.encode(),
        subscription.queue.encode(),
        subscription.sid,
    )


def overfull(limit_bytes: int) -> ResourceExhausted:
    """Say that too much waits to be sent."""
    return ResourceExhausted(
        f"{limit_bytes:,} bytes wait to be sent already; "
        "publish more slowly, or raise BUSMICRO_MAX_BUFFERED_BYTES",
        not_run=True,
    )


def _missing(size_bytes: int, *, of: int) -> int:
    if not 0 <= of <= _MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {of} bytes")
    return size_bytes


class FastPath(NatsPyTransport, asyncio.Protocol):
    """One connection's wire; a new one is made for every attempt to connect."""

    def __init__(
        self,
        subscriptions: dict[bytes, Subscription],
        *,
        on_denied: OnDenied,
        on_lost: Callable[[FastPath], None],
        max_waiting_bytes: int,
    ) -> None:
        self._subscriptions = subscriptions
        self._on_denied = on_denied
        self._on_lost = on_lost
        self._max_waiting_bytes = max_waiting_bytes
        self.max_payload_bytes = DEFAULT_MAX_PAYLOAD_BYTES
        self._loop = asyncio.get_running_loop()
        self._reader = asyncio.StreamReader()
        self._wire: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._pongs: deque[asyncio.Future[None] | None] = deque()
        self._out: list[bytes] = []
        self._batch = _BATCH
        self.waiting_bytes = 0
        self._drained = asyncio.Event()
        self._drained.set()
        self.writable = True
        """Is less than the high-water mark waiting in the loop's buffer?"""
        self._buf = b""
        self._pieces: list[bytes] = []
        self._missing = 0

    # --- sending --------------------------------------------------------------------------------

    def publish(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Queue one message for the end of this turn of the loop; see `Transport.publish`."""
        size = len(header) + len(payload)
        if size > self.max_payload_bytes:
            raise PayloadTooLarge(size, self.max_payload_bytes)
        if self.waiting_bytes > self._max_waiting_bytes:
            raise overfull(self._max_waiting_bytes)
        if header:
            frame = b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
                subject,
                reply,
                len(header),
                size,
                header,
                payload,
            )
        else:
            frame = b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, size, payload)
        if not self._out:
            self._loop.call_soon(self._end_turn)
        self._out.append(frame)
        self.waiting_bytes += size
        if len(self._out) >= self._batch:
            self._batch = min(2 * self._batch, _LARGEST_BATCH)
            self._send()

    def write(self, payload: bytes) -> None:
        """Queue bytes, busmicro's or nats-py's; the order of the calls is the order on the wire."""
        if payload == _PING:
            self._pongs.append(None)
        if not self._out:
            self._loop.call_soon(self._end_turn)
        self._out.append(payload)
        self.waiting_bytes += len(payload)

    def writelines(self, payload: list[bytes]) -> None:
        """Queue several pieces."""
        for piece in payload:
            self.write(piece)

    def _end_turn(self) -> None:
        self._batch = _BATCH
        self._send()

    def _send(self) -> None:
        out, self._out = self._out, []
        self.waiting_bytes = 0
        if out and self._wire is not None and not self._wire.is_closing():
            self._wire.write(out[0] if len(out) == 1 else b"".join(out))
            if not self._drained.is_set():  # the bytes lie in the loop's buffer, and still count
                self.waiting_bytes = self._wire.get_write_buffer_size()

    async def drained(self) -> None:
        """Return when the loop's buffer has emptied, or the connection is gone."""
        await self._drained.wait()

    @property
    def lost(self) -> bool:
        """Has the connection ended?"""
        return self._closed.done()

    def ping(self) -> asyncio.Future[None]:
        """Send a PING of our own; the future ends with its PONG, or fails with the connection."""
        pong: asyncio.Future[None] = self._loop.create_future()
        if self._closed.done():
            pong.set_exception(Disconnected("the connection is down", not_run=True))
            return pong
        self.write(_PING)
        self._pongs[-1] = pong
        return pong

    # --- receiving ------------------------------------------------------------------------------

    def deliver_to(self, subscriptions: dict[bytes, Subscription]) -> None:
        """Deliver to these subscriptions from the next read on."""
        self._subscriptions = subscriptions

    def data_received(self, data: bytes) -> None:
        """Take what the socket had to give."""
        if self._missing > 0:  # in the middle of a large payload: collect, do not copy
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data, self._pieces = b"".join(self._pieces), []
        try:
            self._split(self._buf + data if self._buf else data)
        except (ValueError, IndexError) as wrong:
            log.error("not NATS, connecting anew: %s", wrong)  # noqa: TRY400
            self.abort()

    def _split(self, buf: bytes) -> None:  # noqa: C901, PLR0912, PLR0915 - one loop, no calls: hot
        """Deliver every whole frame in `buf` and keep the rest."""
        at, size, find = 0, len(buf), buf.find
        subscriptions = self._subscriptions
        foreign: list[bytes] = []
        self._buf, self._missing = b"", 0
        while (eol := find(b"\r\n", at)) >= 0:
            op = buf[at]
            if op == _M or (op == _H and buf[at + 1] == _M):
                args = buf[at:eol].split(b" ")  # a subject may hold other blanks: \f and \v
                end = eol + 4 + int(args[-1])
                if not eol + 4 <= end <= size:
                    self._missing = _missing(end - size, of=end - eol - 4)
                    break
                subscription = subscriptions.get(args[2])
                if subscription is None:
                    if args[2][:1] != b"b":  # a late message for one that is gone is dropped
                        foreign.append(buf[at:end])
                else:
                    if op == _M:
                        reply = args[3] if len(args) == 5 else b""
                        header, payload = b"", buf[eol + 2 : end - 2]
                    else:
                        reply = args[3] if len(args) == 6 else b""
                        body = eol + 2 + int(args[-2])
                        if not eol + 2 <= body < end - 1:
                            raise ValueError("a header longer than its message")
                        header, payload = buf[eol + 2 : body], buf[body : end - 2]
                    try:
                        subscription.on_message(args[1], reply, header, payload)
                    except (Exception, asyncio.CancelledError):
                        log.exception("the callback of %r failed", subscription)
                at = end
            else:
                line = buf[at : eol + 2]
                if not self._is_ours(op, line):
                    foreign.append(line)
                at = eol + 2
        self._keep(buf[at:] if at else buf)
        if foreign:
            self._reader.feed_data(b"".join(foreign))

    def _keep(self, rest: bytes) -> None:
        if self._missing > 0:
            self._pieces = [rest]
        elif len(rest) > _MAX_LINE_BYTES:
            raise ValueError(f"a line of more than {_MAX_LINE_BYTES:,} bytes")
        else:
            self._buf = rest

    def _is_ours(self, op: int, line: bytes) -> bool:
        if op == _P and line == b"PONG\r\n":
            pong = self._pongs.popleft() if self._pongs else None
            if pong is None:
                return False
            if not pong.done():
                pong.set_result(None)
            return True
        if op == _MINUS and b"permissions violation" in line.lower():
            self._on_denied(line.decode("utf-8", "replace"))
        return False

    # --- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._wire = cast("asyncio.Transport", transport)
        self._wire.set_write_buffer_limits(high=_HIGH_WATER_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whoever waits for a PONG, for room or for nats-py's bytes is told."""
        if exc is None:
            self._reader.feed_eof()
        else:
            self._reader.set_exception(exc)
        self.writable = True
        self._drained.set()
        for pong in self._pongs:
            if pong is not None and not pong.done():
                pong.set_exception(Disconnected("the connection dropped", not_run=False))
                pong.exception()  # taken note of: nobody need be waiting any more
        self._pongs.clear()
        if not self._closed.done():
            self._closed.set_result(None)
            self._on_lost(self)

    def pause_writing(self) -> None:
        """Note that the server does not keep up."""
        self.writable = False
        self._drained.clear()

    def resume_writing(self) -> None:
        """Note that it does again."""
        self.writable = True
        self._drained.set()
        self.waiting_bytes = 0

    # --- nats.aio.transport.Transport -----------------------------------------------------------

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: float) -> None:
        """Open the TCP stream."""
        self._reader = asyncio.StreamReader(limit=max(buffer_size, _MAX_LINE_BYTES))
        async with asyncio.timeout(connect_timeout):
            await self._loop.create_connection(lambda: self, uri.hostname or "", uri.port or 4222)

    async def connect_tls(
        self,
        uri: str | ParseResult,
        ssl_context: ssl.SSLContext,
        buffer_size: int,  # noqa: ARG002 - nats-py's signature
        connect_timeout: float,
    ) -> None:
        """Turn the TCP stream into a TLS stream."""
        host = uri if isinstance(uri, str) else uri.hostname
        if self._wire is None:
            raise OSError("TLS before the connection was made")
        async with asyncio.timeout(connect_timeout):
            wire = await self._loop.start_tls(self._wire, self, ssl_context, server_hostname=host)
        if wire is None:
            raise OSError("the connection dropped during the TLS handshake")
        self.connection_made(wire)

    async def read(self, buffer_size: int) -> bytes:
        """Give nats-py the bytes that are its own."""
        return await self._reader.read(buffer_size)

    async def readline(self) -> bytes:
        """Give nats-py one line."""
        return await self._reader.readline()

    async def drain(self) -> None:
        """Send what is queued; nats-py must not wait for room, or it would never give up."""
        self._send()

    async def wait_closed(self) -> None:
        """Return when the connection has ended."""
        if self._wire is not None:
            await self._closed

    def close(self) -> None:
        """Send what is queued, then end the connection; a peer that takes nothing is soon left."""
        if self._wire is not None:
            self._send()
            self._wire.close()
            self._loop.call_later(_CLOSE_WITHIN, self._wire.abort)

    def abort(self) -> None:
        """End the connection now; what is queued is lost."""
        if self._wire is not None:
            self._wire.abort()

    def at_eof(self) -> bool:
        """Tell nats-py whether its bytes have ended."""
        return self._reader.at_eof()

    def __bool__(self) -> bool:
        return True
