"""The two directions of a stream at one end: what went out, what came in; no I/O, no clock.

`Outgoing` keeps what was sent until it is acknowledged, and knows how much may be sent.
`Incoming` takes frames in order only, and decides when to allow more.  `stream.py` joins them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from busmicro.rpc.frames import Standing, Window

Frame = tuple[bytes, bytes, bytes]
"""Kind, header block and payload."""

_MOST_REPAIRS: Final = 50


class Outgoing:
    """What this end has sent."""

    __slots__ = (
        "_resent",
        "_resent_at",
        "acked",
        "credit",
        "credit_bytes",
        "ended",
        "sent",
        "sent_bytes",
        "unacked",
    )

    def __init__(self) -> None:
        self.sent = 0
        """Numbered frames sent."""
        self.sent_bytes = 0
        """Their payloads together."""
        self.credit = 0
        """Messages that may have been sent."""
        self.credit_bytes = 0
        """Bytes beyond which no further message may be sent."""
        self.ended = False
        """Has this end said that it sends no more?"""
        self.acked = 0
        """Numbered frames that the other end has."""
        self.unacked: deque[Frame] = deque()
        """The frames after these, in case they must be sent again."""
        self._resent = -1
        self._resent_at = 0.0

    @property
    def has_credit(self) -> bool:
        """May another message be sent?"""
        return self.sent < self.credit and self.sent_bytes < self.credit_bytes

    def add(self, kind: bytes, header: bytes, payload: bytes) -> int:
        """Keep a frame that is sent now, and return its number."""
        self.sent = number = self.sent + 1
        self.sent_bytes += len(payload)
        self.unacked.append((kind, header, payload))
        return number

    def allow(self, messages: int, size_bytes: int) -> bool:
        """Raise the credit; tell whether that changed anything."""
        if messages <= self.credit and size_bytes <= self.credit_bytes:
            return False
        self.credit = max(self.credit, messages)
        self.credit_bytes = max(self.credit_bytes, size_bytes)
        return True

    def acknowledge(self, received: int) -> None:
        """Forget what the other end has."""
        while self.acked < received:
            self.acked += 1
            self.unacked.popleft()

    def again(self, now: float, *, not_within: float) -> Iterator[tuple[int, Frame]]:
        """Yield what is not acknowledged, to be sent again; nothing if that was just done."""
        if self._resent != self.acked or now >= self._resent_at + not_within:
            self._resent, self._resent_at = self.acked, now
            yield from enumerate(tuple(self.unacked), self.acked + 1)


class Incoming:
    """What this end has received."""

    __slots__ = (
        "_repairs",
        "_window",
        "consumed",
        "consumed_bytes",
        "ended",
        "grant_at",
        "grant_at_bytes",
        "granted",
        "granted_bytes",
        "peer_sent",
        "received",
        "received_bytes",
        "repair_at",
        "repair_of",
        "waiting",
    )

    def __init__(self, window: Window) -> None:
        self._window = window
        self.received = 0
        """Numbered frames received, without a gap."""
        self.received_bytes = 0
        """Their payloads together."""
        self.waiting: deque[Frame] = deque()
        """Messages that the application has not taken."""
        self.ended = False
        """Has the other end said that it sends no more?"""
        self.consumed = 0
        """Messages that the application has taken."""
        self.consumed_bytes = 0
        """Their payloads together."""
        self.granted = self.granted_bytes = 0
        """Messages that the other end may have sent; bytes beyond which it may send no more."""
        self.grant_at = self.grant_at_bytes = 0
        """How much the application has taken when half of that is used up."""
        self.grant()
        self.peer_sent = 0
        """Numbered frames that it says it has sent."""
        self.repair_of = -1
        """How many frames were here when a repair was asked for."""
        self.repair_at = 0.0
        """When to ask for that again."""
        self._repairs = 0

    @property
    def has_gap(self) -> bool:
        """Has the other end sent what is not here?"""
        return self.peer_sent > self.received

    def add(self, kind: bytes, header: bytes, payload: bytes) -> bool:
        """Keep the next message for the application; False if the other end may not send it."""
        if self.received >= self.granted or self.received_bytes >= self.granted_bytes or self.ended:
            return False
        self.received += 1
        self.received_bytes += len(payload)
        self.waiting.append((kind, header, payload))
        return True

    def take(self) -> Frame:
        """Hand the next message to the application."""
        frame = self.waiting.popleft()
        self.consumed += 1
        self.consumed_bytes += len(frame[2])
        return frame

    def put_back(self, frame: Frame) -> None:
        """Give back what was taken last, or what was made of it; it is the next to be taken."""
        self.waiting.appendleft(frame)
        self.consumed -= 1
        self.consumed_bytes -= len(frame[2])

    def grant(self) -> None:
        """Allow a window beyond what the application has taken."""
        window = self._window
        self.granted = self.consumed + window.messages
        self.granted_bytes = self.consumed_bytes + window.size_bytes
        self.grant_at = self.granted - window.messages // 2
        self.grant_at_bytes = self.granted_bytes - window.size_bytes // 2

    def wants_repair(self, now: float, *, after: float) -> bool:
        """Tell whether to ask for what is missing: not again within `after` seconds."""
        if self.repair_of != self.received:
            self.repair_of, self._repairs = self.received, 0
        elif now < self.repair_at:
            return False
        self.repair_at = now + after
        self._repairs += 1
        return True

    @property
    def is_beyond_repair(self) -> bool:
        """Was the same frame asked for so often that it will not come?"""
        return self._repairs > _MOST_REPAIRS

    def standing(self, sent: int) -> Standing:
        """Tell how things stand at an end that has sent so many frames."""
        return Standing(self.granted, self.granted_bytes, self.received, sent)
