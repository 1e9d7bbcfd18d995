"""Bugs of one line, each of which the simulator must find."""

from __future__ import annotations

from tests.mutations.bug import Bug

BUGS = (
    Bug(
        "sends without credit",
        "rpc/halves.py",
        "return self.sent < self.credit and self.sent_bytes < self.credit_bytes",
        "return True",
    ),
    Bug(
        "counts no bytes",
        "rpc/halves.py",
        "return self.sent < self.credit and self.sent_bytes < self.credit_bytes",
        "return self.sent < self.credit",
    ),
    Bug(
        "takes frames out of order",
        "rpc/stream.py",
        "if number != incoming.received + 1:",
        "if number < incoming.received + 1:",
    ),
    Bug(
        "takes frames twice",
        "rpc/stream.py",
        "if number != incoming.received + 1:",
        "if number > incoming.received + 1:",
    ),
    Bug(
        "keeps nothing of what it has sent",
        "rpc/halves.py",
        "self.unacked.append((kind, header, payload))",
        "pass",
    ),
    Bug(
        "keeps what was acknowledged",
        "rpc/stream.py",
        "outgoing.acknowledge(standing.received)",
        "pass",
    ),
    Bug(
        "acknowledges no status",
        "rpc/stream.py",
        "self._end(self._statuses.read(header, payload))",
        "return (self._end(self._statuses.read(header, payload)), self._close())[0]",
    ),
    Bug(
        "sends the end without a number",
        "rpc/stream.py",
        'self._send_last(END, b"", b"")',
        'self._emit(END, b"", b"", True)',
    ),
    Bug(
        "allows too much",
        "rpc/halves.py",
        "self.granted = self.consumed + window.messages",
        "self.granted = self.received + window.messages + 1",
    ),
    Bug(
        "never allows more",
        "rpc/stream.py",
        "incoming.grant()",
        "pass",
    ),
    Bug(
        "asks for a repair only once",
        "rpc/halves.py",
        "elif now < self.repair_at:",
        "else:",
    ),
    Bug(
        "sees no gap behind the last frame",
        "rpc/halves.py",
        "return self.peer_sent > self.received",
        "return False",
    ),
    Bug(
        "repairs from the wrong place",
        "rpc/halves.py",
        "yield from enumerate(tuple(self.unacked), self.acked + 1)",
        "yield from enumerate(tuple(self.unacked)[1:], self.acked + 2)",
    ),
    Bug(
        "gives repaired frames other numbers",
        "rpc/halves.py",
        "yield from enumerate(tuple(self.unacked), self.acked + 1)",
        "yield from enumerate(tuple(self.unacked), self.acked)",
    ),
    Bug(
        "does not hear of a cancel",
        "rpc/stream.py",
        "return None if self.closed else self._on_control(name, header, payload, now)",
        "return None if name == CANCEL else self._on_control(name, header, payload, now)",
    ),
    Bug(
        "never closes",
        "rpc/stream.py",
        "if self.over and outgoing.acked == outgoing.sent:",
        "if False:",
    ),
    Bug(
        "closes before the status has arrived",
        "rpc/stream.py",
        "self._send_last(STATUS, header, payload)",
        "(self._send_last(STATUS, header, payload), self._close())",
    ),
    Bug(
        "is silent after a reconnect",
        "rpc/stream.py",
        "self._lost_at, self._back_at, self._heard_at, self._missed = None, now, now, 0",
        "return",
    ),
    Bug(
        "gives up at the first silence",
        "rpc/stream.py",
        "if self._missed >= patience.pings:",
        "if self._missed >= 1:",
    ),
    Bug(
        "never gives up",
        "rpc/stream.py",
        "if self._missed >= patience.pings:",
        "if False:",
    ),
    Bug(
        "does not answer a ping",
        "rpc/stream.py",
        "elif name == PING and not self.closed:",
        "elif False:",
    ),
    Bug(
        "says only once that it was accepted",
        "rpc/stream.py",
        "self._emit_standing(ACCEPT, self._accept)",
        "pass",
    ),
    Bug(
        "drops what waits when the status comes",
        "rpc/stream.py",
        "if drop or self.serving:",
        "if True:",
    ),
    Bug(
        "wakes nobody when it is over",
        "rpc/link.py",
        "if self._readers and (end.incoming.waiting or end.over or end.incoming.ended):",
        "if self._readers and (end.incoming.waiting or end.incoming.ended):",
    ),
    Bug(
        "does not arrange the next tick",
        "rpc/link.py",
        "self.bus.timers.set(tick, when)",
        "pass",
    ),
    Bug(
        "leaves its address",
        "rpc/link.py",
        "self.bus.frames.remove(self._address)",
        "pass",
    ),
    Bug(
        "joins pieces in the wrong order",
        "rpc/pieces.py",
        "self._pieces.append(piece)",
        "self._pieces.insert(0, piece)",
    ),
    Bug(
        "busy while nobody is there",
        "rpc/stream.py",
        "_PROBE_EVERY: Final = 0.02",
        "_PROBE_EVERY: Final = 0.0",
    ),
)
