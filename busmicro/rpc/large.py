"""Messages that do not fit one frame: sent in pieces or as a claim, and made whole again.

A claim says where in JetStream's object store the message lies (claim check).  It takes the place
of the message in every respect: number, credit, repair, order.

Whoever receives may be cancelled at any moment, and several tasks may receive: pieces are kept
here until the last one has come, a claim stays at the head of the queue until it is fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from zlib import crc32

from pydantic import BaseModel, Field, ValidationError

from busmicro.errors import (
    CallError,
    DataLoss,
    Internal,
    NoJetStream,
    ResourceExhausted,
    Unimplemented,
)
from busmicro.rpc.frames import CLAIM, DATA, PIECE
from busmicro.rpc.halves import Frame
from busmicro.rpc.pieces import Join, checksum_line, header_block, too_large
from busmicro.transport import Claim

if TYPE_CHECKING:
    from busmicro.rpc.link import Link

T = TypeVar("T")


class _Written(BaseModel, defer_build=True):
    """A claim on the wire."""

    bucket: str
    object: str
    size: int = Field(ge=0)
    digest: str


def write_claim(claim: Claim) -> bytes:
    """Write a claim as the payload of a frame."""
    written = _Written(
        bucket=claim.bucket, object=claim.name, size=claim.size_bytes, digest=claim.digest
    )
    return written.model_dump_json().encode()


def read_claim(payload: bytes) -> Claim:
    """Read a claim.

    Raises:
        Internal: It is none.
    """
    try:
        said = _Written.model_validate_json(payload)
    except ValidationError as wrong:
        raise Internal("the other end of the stream sent a claim that cannot be read") from wrong
    return Claim(bucket=said.bucket, name=said.object, size_bytes=said.size, digest=said.digest)


class Large:
    """The large messages of one end of a stream."""

    __slots__ = ("_join", "_link", "_under_way")

    def __init__(self, link: Link) -> None:
        self._link = link
        self._join: Join | None = None
        """The message that is being received in pieces."""
        self._under_way: dict[asyncio.Timeout, Callable[[], bool]] = {}

    # --- sending --------------------------------------------------------------------------------

    async def send(self, payload: bytes, lines: bytes) -> None:
        """Send a message of any size; nobody else may send meanwhile.

        Args:
            payload: The message.
            lines: Headers to send along, as the lines of a block.

        Raises:
            CallError: As `Link.send`.
        """
        link = self._link
        threshold = link.limits.claim_check_bytes
        if threshold is not None and len(payload) > threshold:
            put = link.bus.objects.put(payload)
            claim = await self._while(lambda: not link.end.over, put)
            if claim is not None:
                await link.clear_to_send()
                return link.send_frame(CLAIM, write_claim(claim), header_block(lines))
        await link.clear_to_send()
        block = header_block(lines)
        if len(block) + len(payload) <= link.piece_bytes:
            return link.send_frame(DATA, payload, block)
        return await self._send_pieces(payload, lines)

    async def _send_pieces(self, payload: bytes, lines: bytes) -> None:
        """Send a message in pieces; each is as large as the server takes at that moment."""
        link, view = self._link, memoryview(payload)
        at = crc = 0
        block_bytes = len(header_block(lines + checksum_line(0)))
        try:
            while True:
                await link.clear_to_send()
                room = self._room(block_bytes)
                is_last = block_bytes + len(payload) - at <= room
                piece = bytes(view[at : at + room])
                crc = crc32(piece, crc)
                if is_last:
                    block = header_block(lines + checksum_line(crc))
                    return link.send_frame(DATA, piece, block)
                link.send_frame(PIECE, piece, b"")
                at += len(piece)
        except BaseException:
            if at:
                link.end.fail(DataLoss("a message was cut off before its end"))
            raise

    def _room(self, header_bytes: int) -> int:
        room = self._link.piece_bytes
        if header_bytes > room:
            text = f"{header_bytes:,} bytes of headers, the server takes {room:,}; send fewer"
            raise ResourceExhausted(text)
        return room

    # --- receiving ------------------------------------------------------------------------------

    async def gather(self) -> None:
        """Take the next part of a large message; when all is here it is the next that is ready.

        Raises:
            CallError: It cannot be made whole, which has ended the stream.
        """
        waiting = self._link.end.incoming.waiting
        try:
            if waiting[0][0] == CLAIM:
                await self._fetch(waiting[0])
            else:
                self._add()
        except CallError as wrong:
            self._spoil(wrong)
            raise

    def check_end(self) -> None:
        """Hear that nothing more comes.

        Raises:
            DataLoss: A message was not whole.
        """
        if self._join is not None:
            lost = DataLoss("the stream ended in the middle of a message")
            self._spoil(lost)
            raise lost

    def _spoil(self, wrong: CallError) -> None:
        """End the stream, also if it had ended well, with what is wrong at this end."""
        end = self._link.end
        end.fail(wrong)
        end.outcome = end.outcome or wrong
        end.incoming.waiting.clear()
        self._joins(None)

    def _joins(self, join: Join | None) -> None:
        self._join = join
        self._link.joining(join is not None)

    def _add(self) -> None:
        end, join = self._link.end, self._join
        frame = end.take()
        if join is None:
            join = Join(self._link.limits.max_message_bytes)
            self._joins(join)
        if frame[0] == PIECE:
            return join.add(frame)
        whole = join.finish(frame)
        self._joins(None)
        return end.incoming.put_back(whole)

    async def _fetch(self, frame: Frame) -> None:
        """Put a message in the place of its claim."""
        if self._join is not None:
            raise Internal("the other end of the stream sent a claim in the middle of a message")
        claim, objects = read_claim(frame[2]), self._link.bus.objects
        if not objects.is_ours(claim):
            raise Internal("the other end of the stream sent a claim to what is not its own")
        if claim.size_bytes > self._link.limits.max_message_bytes:
            raise too_large(self._link.limits.max_message_bytes)
        incoming = self._link.end.incoming

        def is_next() -> bool:
            return bool(incoming.waiting) and incoming.waiting[0] is frame

        try:
            payload = await self._while(is_next, objects.get(claim))
        except NoJetStream as missing:
            text = f"a message lies in bucket {claim.bucket}, and there is no JetStream here"
            raise Unimplemented(text) from missing
        if payload is not None and is_next():
            incoming.take()
            incoming.put_back((DATA, frame[1], payload))
            objects.discard(claim)

    # --- what may hang --------------------------------------------------------------------------

    async def _while(self, useful: Callable[[], bool], work: Awaitable[T]) -> T | None:
        """Do some work as long as it is useful; return None if it is not any more."""
        try:
            async with asyncio.timeout(None) as scope:
                self._under_way[scope] = useful
                try:
                    return await work
                finally:
                    self._under_way.pop(scope, None)
        except TimeoutError:
            return None
        except CallError:
            if useful():
                raise
            return None

    def look(self) -> None:
        """Stop what is not useful any more."""
        for scope, useful in tuple(self._under_way.items()):
            if not useful():
                del self._under_way[scope]
                scope.reschedule(0.0)
