"""What passes the broker, read without the code under test: windows, repeats, a digest of all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from busmicro.transport import MemoryBroker
from tests.simulation.applications import PLAN, Record
from tests.simulation.plans import Side, World

_MESSAGES = b"dpo"


@dataclass(slots=True)
class _Way:
    """One direction of a stream on the wire."""

    name: str
    window: int
    window_bytes: int
    taken: Callable[[], int] | None
    """How many messages the application has; None where nobody can tell."""
    allowed: int = 0
    allowed_bytes: int = 0
    frames: dict[int, tuple[bytes, bytes, bytes]] = field(default_factory=dict)
    """Kind, header block and payload, by number."""
    size_bytes: dict[int, int] = field(default_factory=lambda: {0: 0})
    """What all frames up to a number weigh."""


@dataclass(slots=True)
class _Stream:
    record: Record
    up: _Way
    down: _Way


class Wire:
    """Looks at every message that is published."""

    def __init__(self, world: World, records: list[Record], clock: Callable[[], float]) -> None:
        self._world = world
        self._records = records
        self._clock = clock
        self._callers: dict[bytes, _Stream] = {}
        self._nodes: dict[bytes, _Stream] = {}
        self._digest = hashlib.blake2b(digest_size=8)
        self.frames = 0
        """Messages that passed."""
        self.log: list[str] | None = None
        """What passed, if somebody wants to read it."""

    @property
    def digest(self) -> str:
        """The same for two runs in which the same messages passed at the same moments."""
        return self._digest.hexdigest()

    def watch(self, broker: MemoryBroker) -> None:
        """Stand between the connections and the broker."""
        route = broker.route

        def seen(source: object, message: tuple[bytes, bytes, bytes, bytes]) -> None:
            self.see(*message)
            route(source, message)

        broker.route = seen

    def see(self, subject: bytes, payload: bytes, reply: bytes, header: bytes) -> None:
        """Take note of a message."""
        self.frames += 1
        self._digest.update(b"%.9f %b %b %b|" % (self._clock(), subject, reply, payload))
        if self.log is not None:
            self.log.append(
                f"{self._clock():.4f} {subject.decode()} {'? ' if reply else ''}{payload[:30]!r}"
            )
        address, _, name = subject.rpartition(b".")
        if b"\r\nBus-Stream: " in header:
            self._open(reply, header)
        elif (stream := self._callers.get(address)) is not None:
            if name == b"a":
                self._nodes[reply] = stream
            self._frame(stream, stream.down, stream.up, name, header, payload)
        elif (stream := self._nodes.get(address)) is not None:
            self._frame(stream, stream.up, stream.down, name, header, payload)

    def _open(self, reply: bytes, header: bytes) -> None:
        lines = dict(line.split(b": ", 1) for line in header.split(b"\r\n")[1:] if b": " in line)
        record = self._records[int(lines[PLAN.encode()])]
        window = [int(part) for part in lines[b"Bus-Stream"].split()]
        caller, node = self._world.caller, self._world.node
        if window != [caller.window, caller.window_bytes]:
            record.faults.append(f"opened with a window of {window}")
        down_taken = None if record.plan.shape == "total" else lambda: record.caller.received
        down = self._way("down", caller, down_taken)
        down.allowed, down.allowed_bytes = window
        up = self._way("up", node, lambda: record.node.received)
        self._callers[reply] = _Stream(record, up, down)

    def _way(self, name: str, side: Side, taken: Callable[[], int] | None) -> _Way:
        return _Way(name, side.window, side.window_bytes, taken)

    def _frame(
        self, stream: _Stream, way: _Way, back: _Way, name: bytes, header: bytes, payload: bytes
    ) -> None:
        """Look at a frame that goes one way; what it allows is for the way back."""
        kind = name[:1]
        if kind in b"acrq":
            messages, size_bytes, _received, _sent = map(int, payload.split())
            back.allowed = max(back.allowed, messages)
            back.allowed_bytes = max(back.allowed_bytes, size_bytes)
            self._granted(stream, back, messages, size_bytes)
        elif kind in b"dpoes":
            self._numbered(stream, way, int(name[1:]), (kind, header, payload))

    def _numbered(
        self, stream: _Stream, way: _Way, number: int, frame: tuple[bytes, bytes, bytes]
    ) -> None:
        faults, what = stream.record.faults, f"{way.name} {frame[0].decode()}{number}"
        before = way.frames.setdefault(number, frame)
        if before != frame:
            faults.append(f"{what} was sent again and is not the same")
        sent_bytes = way.size_bytes.get(number - 1)
        if sent_bytes is not None:
            way.size_bytes[number] = sent_bytes + len(frame[2])
        if frame[0] not in _MESSAGES:
            return
        if number > way.allowed:
            faults.append(f"{what} was sent where {way.allowed} messages were allowed")
        if sent_bytes is not None and sent_bytes >= way.allowed_bytes:
            faults.append(f"{what} was sent after {sent_bytes} of {way.allowed_bytes} bytes")

    def _granted(self, stream: _Stream, way: _Way, messages: int, size_bytes: int) -> None:
        """No end may allow more than its window beyond what its application has taken."""
        if way.taken is None:
            return
        taken = self._frames_taken(way, way.taken())
        if taken is None:
            return
        faults = stream.record.faults
        if messages > taken + way.window:
            faults.append(f"{way.name}: {messages} allowed, {taken} taken of {way.window}")
        most_bytes = way.size_bytes.get(taken)
        if most_bytes is not None and size_bytes > most_bytes + way.window_bytes:
            faults.append(f"{way.name}: {size_bytes} bytes allowed, {most_bytes} taken")

    def _frames_taken(self, way: _Way, messages: int) -> int | None:
        """Count the frames of so many messages, and the pieces of the next one."""
        whole, number = 0, 0
        while (frame := way.frames.get(number + 1)) is not None:
            if whole == messages and frame[0] != b"p":
                return number
            whole += frame[0] == b"d"
            number += 1
        return number if whole >= messages else None
