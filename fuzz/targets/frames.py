"""What happens to one end of a stream, in any order: it never raises, and keeps its promises.

Input: lines.  The first says which end it is and its window (`node 4 100`); each other one is an
event: a letter, and what belongs to it.

    >d1 hello   a frame arrives          <hello  a message is sent, if one may be
    !           nobody listened there    .       no more messages from here
    -, +        connection lost, back    ^       the application takes a message
    t0.5        time passes              $, ~    it ends well, or badly
    ?           the application waits for room
"""

from __future__ import annotations

import re

from busmicro.errors import CallError, Internal
from busmicro.headers import VERSION_LINE
from busmicro.rpc.frames import DATA, Window, read_standing
from busmicro.rpc.link import _Statuses
from busmicro.rpc.stream import Patience, StreamEnd
from fuzz.wrong import listen_for_complaints, require

_FIRST = re.compile(rb"(node|caller) ([1-9][0-9]{0,3}) ([1-9][0-9]{0,5})")
_NUMBERED = re.compile(rb"[dpoes][1-9][0-9]*")
_STANDING = frozenset((b"a", b"c", b"r", b"q"))
_LAST_FRAMES = 2
_LONGEST = 300
complaints = listen_for_complaints()


class _End:
    """An end, and what can be said of it from outside."""

    def __init__(self, *, serving: bool, window: Window) -> None:
        self.now = 10.0
        self.window = window
        self.emitted: list[bytes] = []
        self.outcome: tuple[CallError | None] | None = None
        self.was_closed = False
        self.end = StreamEnd(
            self._emit,
            self._changed,
            window=window,
            patience=Patience(idle=60.0),
            now=self.now,
            serving=serving,
            statuses=_Statuses("fuzz"),
        )

    def _emit(self, name: bytes, payload: bytes, header: bytes, _ask: bool, /) -> None:  # noqa: FBT001
        if name in _STANDING:
            standing = read_standing(payload)
            require(standing is not None, "a standing that is none", payload)
            incoming = self.end.incoming
            require(standing[2] == incoming.received, "acknowledged", standing)
            most = incoming.consumed + self.window.messages
            require(standing[0] <= most, "more was granted than there is room for", standing, most)
        else:
            plain = _NUMBERED.fullmatch(name) or name == b"x"
            require(plain, "a frame that does not exist", name)
        if header:
            require(header.startswith(VERSION_LINE), "a block that is none", header)
        self.emitted.append(name)

    def _changed(self) -> None:
        pass

    def look(self) -> None:
        """See that nothing has gone wrong."""
        end = self.end
        outgoing, incoming = end.outgoing, end.incoming
        messages = len(incoming.waiting)
        require(messages <= self.window.messages, "more waits than the window", messages)
        sizes = [len(frame[2]) for frame in incoming.waiting]
        require(sum(sizes[:-1]) < self.window.size_bytes or not sizes, "too many bytes", sizes)
        kept = len(outgoing.unacked)
        require(end.closed or kept == outgoing.sent - outgoing.acked, "lost what was sent", kept)
        require(outgoing.sent <= outgoing.credit + _LAST_FRAMES, "sent beyond the credit")
        require(end.over or not end.closed, "closed without an outcome")
        require(end.closed or not self.was_closed, "opened again")
        if self.outcome is not None:
            require(end.over and self.outcome[0] is end.outcome, "two outcomes", end.outcome)
        elif end.over:
            self.outcome = (end.outcome,)
        self.was_closed = end.closed
        require(end.closed or end.due(self.now) > self.now, "due in the past")

    def happen(self, line: bytes) -> None:
        """Let something happen."""
        end, what = self.end, line[1:]
        match line[:1]:
            case b">":
                name, _, payload = what.partition(b" ")
                header, bar, rest = payload.partition(b"|")
                if name and not end.closed:
                    self._on_frame(name, *((header, rest) if bar else (b"", payload)))
            case b"<":
                if end.may_send and not (end.over or end.outgoing.ended):
                    end.send(DATA, what, b"", self.now)
            case b"t":
                self._pass(what)
            case letter:
                self._act(letter)

    def _on_frame(self, name: bytes, header: bytes, payload: bytes) -> None:
        before = self.end.incoming.received
        kept, sent = len(self.end.outgoing.unacked), len(self.emitted)
        self.end.on_frame(name, header.replace(b"\\n", b"\r\n"), payload, self.now)
        require(self.end.incoming.received - before in {0, 1}, "a frame counted twice")
        answers = len(self.emitted) - sent
        require(answers <= kept + 4, "one frame makes many", name, answers)

    def _pass(self, text: bytes) -> None:
        seconds = float(text) if re.fullmatch(rb"[0-9]{1,3}(\.[0-9]{1,3})?", text) else 0.01
        until = self.now + seconds
        for _ in range(100):
            due = self.end.due(self.now)
            if self.end.closed or due > until:
                break
            self.now = due
            self.end.tick(self.now)
        self.now = max(self.now, until)

    def _act(self, letter: bytes) -> None:  # noqa: C901 - a table
        end = self.end
        match letter:
            case b"!":
                end.on_nobody(self.now)
            case b"-":
                end.on_disconnected(self.now)
            case b"+":
                end.on_connected(self.now)
            case b".":
                end.end()
            case b"^" if end.incoming.waiting:
                end.take()
            case b"$" if end.serving:
                end.finish(b"", b"", None)
            case b"~":
                end.fail(Internal("as the input wants it"))
            case b"?":
                end.wait_for_room(self.now)
            case _:
                pass


def one(data: bytes) -> None:
    """Let everything happen that the input says."""
    first, *lines = data.split(b"\n", _LONGEST)
    said = _FIRST.fullmatch(first)
    if said is None:
        return
    window = Window(messages=int(said[2]), size_bytes=int(said[3]))
    it = _End(serving=said[1] == b"node", window=window)
    if it.end.serving:
        it.end.accept(b"", window)
    for line in lines[:_LONGEST]:
        it.happen(line)
        it.look()
    complaints.require_none()
