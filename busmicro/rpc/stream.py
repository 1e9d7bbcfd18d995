"""One end of a stream: a state machine without I/O, tasks or a clock of its own.

It is told what happens (`on_frame`, `on_disconnected`, `tick`, …) and when; it hands out frames
(`emit`) and says that something has changed (`changed`).  `link.py` drives it.

What it keeps, whatever the network does:

- **Order, nothing lost, nothing twice.**  Numbered frames are taken in order only.  What is ahead
  of a gap is dropped, and asked for again (`r`) from the first one missing; the sender keeps what
  it has sent until it is acknowledged.  Every frame without a number says how many numbered ones
  were sent before it, so that a lost last one is noticed too.
- **Credit.**  An end sends no message beyond what the other end has allowed, and allows no more
  than its window beyond what the application has taken.  Whoever sends more is in error.
- **One end.**  A stream is over once, with one outcome.  The node's last frame is its status, kept
  until the caller has it; the caller's way out before that is `x`.
- **Somebody is there.**  Frames that ask for an answer come back as "nobody listens" when the other
  process is gone; one that is only silent is pinged, and given up after three times.

Source: docs/protocol.md (Streams); RSocket and gRPC for credit and half-close.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from busmicro.errors import (
    CallError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Disconnected,
    Internal,
    Unavailable,
)
from busmicro.rpc.frames import (
    ACCEPT,
    CANCEL,
    CLAIM,
    CREDIT,
    DATA,
    END,
    NO_STREAM,
    PIECE,
    PING,
    REPAIR,
    STATUS,
    Standing,
    Window,
    gives_too_much,
    read_standing,
    write_standing,
)
from busmicro.rpc.halves import Frame, Incoming, Outgoing

_ASK_EVERY: Final = 0.01
"""Seconds of sending after which a frame asks whether anybody is there (`Patience.gone_after`)."""
_ASK: Final = True
_PROBE_EVERY: Final = 0.02
_SHORTEST_TICK: Final = 0.001
_MESSAGES: Final = frozenset((DATA[0], PIECE[0], CLAIM[0]))
_NUMBERED: Final = _MESSAGES | {END[0], STATUS[0]}
_LAST_FRAMES: Final = 2
"""The end and the status need no credit."""
_NEVER: Final = float("inf")


class Emit(Protocol):
    """Sends a frame to the other end."""

    def __call__(self, name: bytes, payload: bytes, header: bytes, ask: bool, /) -> None:  # noqa: FBT001 - once a frame, so by position
        """Send a frame.

        Args:
            name: The last word of its subject.
            payload: Its payload.
            header: Its header block, or empty.
            ask: Should an answer be asked for, so that we hear if nobody is there?
        """
        ...


class Statuses(Protocol):
    """Reads and writes how a stream ended."""

    def read(self, header: bytes, payload: bytes, /) -> CallError | None:
        """Read it; None if it ended well."""
        ...

    def write(self, error: CallError, /) -> tuple[bytes, bytes]:
        """Write an error as header block and payload."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an end waits for what; seconds."""

    ping_every: float = 5.0
    """Silence after which the other end is asked for a sign of life."""
    pings: int = 3
    """So many silences in a row, and it is given up."""
    gone_after: float = 0.06
    """How long the other end may be missing from the bus, as while it connects again."""
    back_within: float = 5.0
    """The same after this end was away itself: then all of the bus may have been."""
    away_within: float = 30.0
    """How long this end may be without a connection."""
    repair_after: float = 0.2
    """How long to wait for a repair before it is asked for again."""
    idle: float | None = None
    """How long no message may come or go; None for ever."""


class StreamEnd:
    """One end of a stream."""

    __slots__ = (
        "_accept",
        "_ask_at",
        "_asked_at",
        "_back_at",
        "_changed",
        "_doubt_since",
        "_emit",
        "_heard_at",
        "_lost_at",
        "_missed",
        "_moved_at",
        "_patience",
        "_probe_at",
        "_probe_pause",
        "_statuses",
        "_uneasy",
        "closed",
        "holding",
        "incoming",
        "outcome",
        "outgoing",
        "over",
        "serving",
    )

    def __init__(
        self,
        emit: Emit,
        changed: Callable[[], None],
        *,
        window: Window,
        patience: Patience,
        now: float,
        serving: bool,
        statuses: Statuses,
    ) -> None:
        """Make an end that has sent and received nothing.

        Args:
            emit: Sends a frame.
            changed: Called when whoever waits for messages, credit or the end should look.
            window: What the other end may send ahead.
            patience: How long to wait for what.
            now: Seconds of the clock that all other calls tell the time by.
            serving: Is this the node's end?
            statuses: Reads and writes how the stream ended.
        """
        self._emit = emit
        self._changed = changed
        self._patience = patience
        self._statuses = statuses
        self.serving = serving
        """Is this the node's end?"""
        self.outgoing = Outgoing()
        """What this end has sent."""
        self.incoming = Incoming(window)
        """What this end has received."""
        self.holding = False
        """Is sending put off, because nobody would get it?"""
        self.over = False
        """Is the outcome known? No message is sent any more then."""
        self.outcome: CallError | None = None
        """How it ended, if not well."""
        self.closed = False
        """Is there nothing left to do, so that this end may be forgotten?"""
        self._heard_at = self._asked_at = self._moved_at = now
        self._ask_at = 0.0
        self._uneasy = False
        self._accept: bytes | None = None
        self._missed = 0
        self._doubt_since: float | None = None
        self._lost_at: float | None = None
        self._back_at = -_NEVER
        self._probe_at = _NEVER
        self._probe_pause = _ASK_EVERY

    def accept(self, header: bytes, window: Window) -> None:
        """At the node: tell the caller that it may begin, and remember what it allows."""
        self._accept, self._uneasy = header, True
        self.outgoing.allow(window.messages, window.size_bytes)
        self._emit_standing(ACCEPT, header)

    # --- sending --------------------------------------------------------------------------------

    @property
    def may_send(self) -> bool:
        """May another message be sent now?"""
        return self.outgoing.has_credit and not self.holding

    def send(self, kind: bytes, payload: bytes, header: bytes, now: float) -> None:
        """Send a message; only while `may_send`, and not after `end` or once it is over."""
        number = self.outgoing.add(kind, header, payload)
        self._moved_at = now
        ask = now >= self._ask_at
        if ask:
            self._ask_at = now + _ASK_EVERY
        self._emit(b"%b%d" % (kind, number), payload, header, ask)

    def wait_for_room(self, now: float) -> None:
        """Hear that a message waits to be sent; without credit that is no sign of life, so ask.

        Soon at first, for a quick end that takes no more may be dead, then ever more seldom.
        """
        if self._probe_at == _NEVER and not self.outgoing.has_credit:
            self._probe_pause = _ASK_EVERY
            self._probe_at = now + _ASK_EVERY

    def end(self) -> None:
        """Say that no more messages come from this end; the other direction goes on."""
        if not (self.outgoing.ended or self.over):
            self.outgoing.ended = True
            self._send_last(END, b"", b"")

    def finish(self, header: bytes, payload: bytes, outcome: CallError | None) -> None:
        """At the node: say how it ended, after all that was sent, and keep it until it is heard."""
        if not self.over:
            self._end(outcome)
            self._send_last(STATUS, header, payload)

    def _send_last(self, kind: bytes, header: bytes, payload: bytes) -> None:
        """Send a numbered frame that needs no credit; while holding, it goes with the repair."""
        number = self.outgoing.add(kind, header, payload)
        if not self.holding:
            self._emit(b"%b%d" % (kind, number), payload, header, _ASK)

    def cancel(self, outcome: CallError) -> None:
        """At the caller: end it now, and tell the node once; if that is lost it finds out."""
        if not self.over:
            self._end(outcome, drop=True)
            header, payload = self._statuses.write(outcome)
            self._emit(CANCEL, payload, header, not _ASK)
            self._close()

    def break_off(self, error: CallError) -> None:
        """End it out of order, as a frame that others would have to wait for can never leave."""
        if not self.closed:
            self._end(error, drop=True)
            self._close()
            header, payload = self._statuses.write(error)
            self._emit(CANCEL, payload, header, not _ASK)

    def drop(self, outcome: CallError) -> None:
        """End it without a word: nobody listens there any more."""
        self._end(outcome, drop=True)
        self._close()

    def fail(self, error: CallError) -> None:
        """End it because of something at this end; the other end is told."""
        if self.serving:
            self.finish(*self._statuses.write(error), error)
        else:
            self.cancel(error)

    # --- receiving ------------------------------------------------------------------------------

    def on_frame(self, name: bytes, header: bytes, payload: bytes, now: float) -> None:  # noqa: C901 - hot
        """Take a frame of the other end; its name is not empty, whatever else it is."""
        self._heard_at = now
        if self._uneasy:
            self._is_there()
        kind = name[0]
        if kind not in _NUMBERED:
            return None if self.closed else self._on_control(name, header, payload, now)
        incoming = self.incoming
        try:
            number = int(name[1:])
        except ValueError:
            number = 0
        if number != incoming.received + 1:
            return self._out_of_order(name, number, now)
        if kind not in _MESSAGES:
            return self._take_last(kind, header, payload)
        if self.over:
            return None
        if not incoming.add(name[:1], header, payload):
            return self._violated("a message beyond what was allowed")
        self._moved_at = now
        if len(incoming.waiting) == 1:  # else whoever waits for one has been told
            self._changed()
        return None

    def _out_of_order(self, name: bytes, number: int, now: float) -> None:
        """Ask again for what is missing; what came twice is nothing new."""
        if number < 1 or number > self.incoming.granted + _LAST_FRAMES:
            self._violated(f"a frame {name[:24]!r} that nobody had allowed")
        elif number > self.incoming.received:
            self.incoming.peer_sent = max(self.incoming.peer_sent, number)
            self._missing(now)

    def _take_last(self, kind: int, header: bytes, payload: bytes) -> None:
        """Take an end of messages, or a status."""
        if kind == STATUS[0]:
            if self.serving:
                return self._violated("a status, which only the node may send")
            self.incoming.received += 1
            self._end(self._statuses.read(header, payload))
            self._emit_standing(CREDIT)
            return self._close()
        if self.incoming.ended:
            return self._violated("a second end of messages")
        self.incoming.received += 1
        self.incoming.ended = True
        self._changed()
        return None

    def take(self) -> Frame:
        """Hand the next message to the application, which makes room for another one."""
        incoming = self.incoming
        frame = incoming.take()
        if (
            incoming.consumed >= incoming.grant_at
            or incoming.consumed_bytes >= incoming.grant_at_bytes
        ) and not (self.over or incoming.ended):
            incoming.grant()
            self._emit_standing(CREDIT)
        return frame

    def _missing(self, now: float) -> None:
        """Ask for what is missing, unless that was just done."""
        incoming = self.incoming
        if self.over or not incoming.wants_repair(now, after=self._patience.repair_after):
            return
        if incoming.is_beyond_repair:
            lost = incoming.received + 1
            self.fail(DataLoss(f"frame {lost} of the stream was lost and does not come again"))
        else:
            self._emit_standing(REPAIR)

    # --- how things stand -----------------------------------------------------------------------

    def _emit_standing(self, kind: bytes, header: bytes = b"") -> None:
        standing = write_standing(self.incoming.standing(self.outgoing.sent))
        self._emit(kind, standing, header, kind != CREDIT)

    def _on_control(self, name: bytes, header: bytes, payload: bytes, now: float) -> None:
        if name == CANCEL:
            told = self._statuses.read(header, payload) or Cancelled("the other end has cancelled")
            self._end(told)
            return self._close()
        if name == NO_STREAM:
            return self._peer_is_gone("the other end knows nothing of this stream any more")
        standing = read_standing(payload)
        if standing is None or name not in (ACCEPT, CREDIT, PING, REPAIR):
            return self._violated(f"a frame {name[:24]!r} that means nothing here")
        if standing.received > self.outgoing.sent:
            return self._violated("an acknowledgement of what was never sent")
        if gives_too_much(standing, self.outgoing.sent_bytes):
            return self._violated("more credit than may be given")
        self._on_standing(standing, now)
        if name == REPAIR and standing.received == self.outgoing.acked:
            self._send_again(now)
        elif name == PING and not self.closed:
            self._emit_standing(CREDIT)
        return None

    def _on_standing(self, standing: Standing, now: float) -> None:
        outgoing, incoming = self.outgoing, self.incoming
        outgoing.acknowledge(standing.received)
        if outgoing.allow(standing.may_send, standing.may_send_bytes):
            self._probe_at = _NEVER
            self._changed()
        incoming.peer_sent = max(incoming.peer_sent, standing.sent)
        if incoming.has_gap:
            self._missing(now)
        if self.over and outgoing.acked == outgoing.sent:
            self._close()

    def _send_again(self, now: float) -> None:
        lately = self._patience.repair_after / 2
        for number, (kind, header, payload) in self.outgoing.again(now, not_within=lately):
            self._emit(b"%b%d" % (kind, number), payload, header, not _ASK)

    # --- is anybody there? ----------------------------------------------------------------------

    def _is_there(self) -> None:
        """Hear something at last."""
        self._missed, self._accept, self._uneasy = 0, None, False
        if self._doubt_since is not None:
            self._doubt_since = None
            self._hold()
            if self.outgoing.unacked:
                self._emit_standing(PING)

    def _hold(self) -> None:
        self.holding = self._lost_at is not None or self._doubt_since is not None
        if not self.holding:
            self._changed()

    def on_nobody(self, now: float) -> None:
        """Hear that nobody listened where a frame was sent."""
        if self._lost_at is not None or self.closed:
            return
        if self._doubt_since is None:
            self._doubt_since, self._uneasy = now, True
            self._hold()
            self._emit_standing(PING)
            return
        patience = self._patience
        if now >= max(
            self._doubt_since + patience.gone_after, self._back_at + patience.back_within
        ):
            self._peer_is_gone("the other end of the stream has gone")

    def on_disconnected(self, now: float) -> None:
        """Hear that the connection is gone; what is kept goes out again when it is back."""
        if self._lost_at is None:
            self._lost_at, self._doubt_since = now, None
            self._hold()

    def on_connected(self, now: float) -> None:
        """Hear that the connection is back: say how things stand, and ask."""
        if self._lost_at is None or self.closed:
            return
        self._lost_at, self._back_at, self._heard_at, self._missed = None, now, now, 0
        self._hold()
        self._greet()

    def _greet(self) -> None:
        """Ask for a sign of life; whoever may not know that it was accepted hears of it again."""
        if self._accept is not None:
            self._emit_standing(ACCEPT, self._accept)
        self._emit_standing(PING)

    def tick(self, now: float) -> None:
        """Do what is due."""
        if not self.closed:
            self._look_at_silence(now)
        if not self.over:
            self._look_at_idleness(now)

    def _look_at_silence(self, now: float) -> None:
        patience = self._patience
        if self._lost_at is not None:
            if now >= self._lost_at + patience.away_within:
                self._end(Disconnected("without a connection to NATS for too long", not_run=False))
                self._close()
        elif now >= self._next_silence():
            self._missed, self._uneasy, self._asked_at = self._missed + 1, True, now
            if self._missed >= patience.pings:
                silent = now - self._heard_at
                self._peer_is_gone(f"the other end has been silent for {silent:.0f} s")
            else:
                self._greet()
        elif self._doubt_since is not None:
            self._emit_standing(PING)
        elif now >= self._probe_at:
            self._probe_pause *= 2
            self._probe_at = now + self._probe_pause
            self._emit_standing(PING)
        elif self._misses_something:
            self._missing(now)

    def _look_at_idleness(self, now: float) -> None:
        idle = self._patience.idle
        if idle is not None and now >= self._moved_at + idle:
            self.fail(DeadlineExceeded(f"no message came or went for {idle} s"))

    def _next_silence(self) -> float:
        """Tell when it has been silent for too long; after a standstill there is time to answer."""
        return max(self._heard_at, self._asked_at) + self._patience.ping_every

    @property
    def _misses_something(self) -> bool:
        return self.incoming.has_gap and not self.over

    def due(self, now: float) -> float:
        """Tell when `tick` wants to be called next, if nothing happens until then."""
        patience = self._patience
        if self._lost_at is not None:
            due = self._lost_at + patience.away_within
        elif self._doubt_since is not None:
            due, gone_at = now + _PROBE_EVERY, self._doubt_since + patience.gone_after
            if now < gone_at:
                due = min(due, gone_at)
        else:
            due = min(self._next_silence(), self._probe_at)
            if self._misses_something:
                due = min(due, self.incoming.repair_at)
        if patience.idle is not None and not self.over:
            due = min(due, self._moved_at + patience.idle)
        return max(due, now + _SHORTEST_TICK)

    # --- the end --------------------------------------------------------------------------------

    def _violated(self, what: str) -> None:
        if not self.over:
            self.fail(Internal(f"the other end of the stream broke the protocol: it sent {what}"))

    def _peer_is_gone(self, text: str) -> None:
        self._end(Unavailable(text))
        self._close()

    def _end(self, outcome: CallError | None, *, drop: bool = False) -> None:
        """Settle the outcome, once; what waits is of no use to a node any more."""
        if self.over:
            return
        self.over, self.outcome, self._probe_at = True, outcome, _NEVER
        if drop or self.serving:
            self.incoming.waiting.clear()
        self._changed()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self.outgoing.unacked.clear()
            self._changed()
