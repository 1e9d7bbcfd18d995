"""Bytes from a server, cut anywhere: nothing raises, what is not NATS ends the connection.

Input: a byte that says how to cut the rest, then what the server sends.  A second reader, slow and
plain, says what must come out of it.
"""

from __future__ import annotations

import asyncio

from busmicro.transport import Subscription
from busmicro.transport.fastpath import FastPath
from fuzz.wrong import listen_for_complaints, require

Delivered = list[tuple[bytes, bytes, bytes, bytes, bytes]]

_SIDS = (b"b1", b"b2")
_LARGEST = 2**31


class _Wire(asyncio.Transport):
    """The socket's end of a connection: takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


def plainly(stream: bytes) -> tuple[Delivered, bool]:
    """Read a stream at leisure: what must be delivered, and does it end the connection?"""
    found: Delivered = []
    at = 0
    while (eol := stream.find(b"\r\n", at)) >= 0:
        words, at = stream[at:eol].split(b" "), eol + 2
        if words[0][:1] != b"M" and words[0][:2] != b"HM":
            continue
        with_header = words[0][:1] == b"H"
        try:
            size = int(words[-1])
            if size > len(stream) - at - 2:
                return found, not 0 <= size <= _LARGEST
            sid = words[2]
            cut = int(words[-2]) if with_header and sid in _SIDS else 0
        except (ValueError, IndexError):
            return found, True
        if size < 0 or (sid in _SIDS and with_header and not 0 <= cut <= size):
            return found, True
        body, at = stream[at : at + size], at + size + 2
        if sid in _SIDS:
            reply = words[3] if len(words) == (6 if with_header else 5) else b""
            found.append((sid, words[1], reply, body[:cut], body[cut:]))
    return found, False


complaints = listen_for_complaints()
loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    """Feed one stream, whole and in pieces."""
    if not data:
        return
    stream = data[1:]
    step = data[0] % 64 + 1
    expected, is_over = plainly(stream)
    for pieces in ([stream], [stream[a : a + step] for a in range(0, len(stream), step)]):
        delivered, aborted = loop.run_until_complete(_fed(pieces))
        require(delivered == expected, "delivered", delivered, expected)
        require(aborted is is_over, "ended after what is not NATS", aborted, is_over)
    complaints.require_none("busmicro.transport: not NATS", "busmicro.transport: the callback of")


async def _fed(pieces: list[bytes]) -> tuple[Delivered, bool]:
    delivered: Delivered = []

    def listener(sid: bytes) -> Subscription:
        def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            delivered.append((sid, subject, reply, header, payload))
            if payload == b"fault":
                raise ZeroDivisionError

        return Subscription(sid, "x", "", on_message)

    denied: list[str] = []
    path = FastPath(
        {sid: listener(sid) for sid in _SIDS},
        on_denied=denied.append,
        on_lost=lambda _path: None,
        max_waiting_bytes=1_000_000,
    )
    wire = _Wire()
    path.connection_made(wire)
    for _ in range(2):
        path.ping().add_done_callback(lambda pong: pong.exception())
    for piece in pieces:
        path.data_received(piece)
        if wire.aborted:
            break
    path.connection_lost(None)
    await asyncio.sleep(0)
    pings = b"".join(wire.written)
    require(not pings.replace(b"PING\r\n", b""), "written without being asked", pings)
    return delivered, wire.aborted
