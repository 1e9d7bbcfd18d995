"""What a seed decides before anything happens: windows, sizes, pauses, who leaves, the weather."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Weather = Literal["calm", "mild", "storm"]
"""Nothing gets lost; what gets lost must not be noticed; anything may happen."""
Shape = Literal["ask", "count", "total", "talk"]
"""One request and one reply; one and many; many and one; many and many."""
Manner = Literal["echo", "after", "before", "beside"]
"""How the handler of `talk` mixes receiving and sending."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What one side sends."""

    sizes: tuple[int, ...]
    """Of each message, in bytes; a message is never shorter than its label."""
    pauses: tuple[float, ...]
    """Before each message, in turn; seconds."""

    def pause(self, at: int) -> float:
        return self.pauses[at % len(self.pauses)]

    def size(self, at: int) -> int:
        return self.sizes[at % len(self.sizes)] if self.sizes else 20

    def takes(self, count: int) -> float:
        """Tell how many seconds the pauses of so many messages take."""
        return sum(self.pause(at) for at in range(count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What both sides of one stream do."""

    number: int
    shape: Shape
    starts: float
    """Seconds after the beginning."""
    stub: bool
    """Through a method of a stub, or with `client.stream`?"""
    up: Flow
    """From the caller to the node."""
    down: Flow
    """From the node to the caller."""
    caller_pauses: Flow
    """After each message that the caller takes."""
    node_pauses: Flow
    caller_takes: int | None
    """The caller leaves after so many messages."""
    node_takes: int | None
    """The handler takes no more messages after so many."""
    manner: Manner
    node_fails: Literal["", "refusal", "crash"]
    """How the handler ends when it has sent all."""
    caller_fails: Literal["", "source", "block"]
    """Where the caller's own code raises, having sent or taken all it wanted."""
    closes: bool
    """Does the caller say that it sends no more?"""
    drops: bool
    """Does a caller that leaves forget its iterator, instead of closing it?"""
    stubborn: bool
    """Does the caller take nothing before it has sent everything?"""
    cancel_after: float | None
    timeout: float | None
    idle: float | None
    """The caller's idle time-out."""

    @property
    def takes(self) -> float:
        """Seconds that its own pauses take, at most."""
        flows = (self.up, self.down, self.caller_pauses, self.node_pauses)
        most = max(len(self.up.sizes), len(self.down.sizes)) + 1  # an echo is as long as the call
        return self.starts + sum(flow.takes(most) for flow in flows)

    def message(self, way: Literal["up", "down"], at: int) -> bytes:
        """Make a message that looks like no other one."""
        label = b"%d %b %d;" % (self.number, way.encode(), at)
        size = max((self.up if way == "up" else self.down).size(at), len(label))
        return (label * (size // len(label) + 1))[:size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one process is set to."""

    window: int
    window_bytes: int
    ping_every: float
    grace: float
    """How long the other end may be missing, seconds."""
    idle: float | None

    @property
    def settings(self) -> dict[str, object]:
        return {
            "stream_window": self.window,
            "stream_window_bytes": self.window_bytes,
            "stream_ping_interval": self.ping_every,
            "stream_grace": self.grace,
            "stream_idle_timeout": self.idle,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that a seed decides, but for what the weather does while it lasts."""

    weather: Weather
    until: float
    """Seconds after which the weather is fine."""
    caller: Side
    node: Side
    max_payload_bytes: int
    node_stops_after: float | None
    """When the service is stopped, with a second of grace; seconds."""
    plans: tuple[Plan, ...]


def _pauses(rng: random.Random) -> tuple[float, ...]:
    style = rng.choice(("none", "none", "none", "short", "slow", "gap"))
    if style == "none":
        return (0.0,)
    if style == "short":
        return tuple(rng.uniform(0, 0.05) for _ in range(5))
    if style == "slow":
        return (rng.uniform(0.05, 1.0),)
    return (*(0.0 for _ in range(rng.randrange(60))), rng.choice((2.0, 20.0, 300.0)))


def _flow(rng: random.Random, most_bytes: int) -> Flow:
    count = rng.choice((0, 1, 2, rng.randrange(20), rng.randrange(20), rng.randrange(80)))
    style = rng.choice(("small", "small", "mixed", "large"))
    if style == "small":
        sizes = tuple(rng.randrange(8, 40) for _ in range(count))
    elif style == "mixed":
        sizes = tuple(rng.choice((0, 10, 100, rng.randrange(2000))) for _ in range(count))
    else:
        sizes = tuple(rng.randrange(most_bytes, 4 * most_bytes) for _ in range(min(count, 12)))
    return Flow(sizes, _pauses(rng))


def _some(rng: random.Random, chance: float, values: Sequence[float]) -> float | None:
    return rng.choice(values) if rng.random() < chance else None


def _plan(rng: random.Random, number: int, most_bytes: int) -> Plan:
    shape: Shape = rng.choice((*["count", "total", "talk", "talk"] * 3, "ask"))
    up, down = _flow(rng, most_bytes), _flow(rng, most_bytes)
    if shape == "ask":
        down = Flow((20,), down.pauses)  # a reply is not cut
    closes, stubborn = rng.random() < 0.85, rng.random() < 0.1
    limited = not closes or stubborn  # such callers may wait for ever
    timeout = _some(rng, 1.0 if limited else 0.15, (0.1, 1.0, 7.0, 60.0))
    return Plan(
        number=number,
        shape=shape,
        starts=rng.choice((0.0, 0.0, rng.uniform(0, 3))),
        stub=closes and not stubborn and rng.random() < 0.5,
        up=up,
        down=down,
        caller_pauses=Flow(down.sizes, _pauses(rng)),
        node_pauses=Flow(up.sizes, _pauses(rng)),
        caller_takes=rng.randrange(1, 20) if rng.random() < 0.15 else None,
        node_takes=rng.randrange(20) if rng.random() < 0.15 else None,
        manner=rng.choice(("echo", "after", "before", "beside")),
        node_fails=rng.choice(("", "", "", "", "refusal", "crash")),
        caller_fails=rng.choice(("", "", "", "", "", "", "", "source", "block")),
        closes=closes,
        drops=rng.random() < 0.5,
        stubborn=stubborn,
        cancel_after=_some(rng, 0.12, (0.0, 0.001, 0.03, rng.uniform(0, 3), rng.uniform(0, 30))),
        timeout=timeout,
        idle=_some(rng, 0.08, (0.2, 1.0, 7.0)),
    )


def _side(rng: random.Random) -> Side:
    return Side(
        window=rng.choice((1, 2, 3, rng.randrange(1, 32), 32)),
        window_bytes=rng.choice((1, rng.randrange(1, 500), 2000, 10_000, 1024 * 1024)),
        ping_every=rng.choice((0.5, 1.0, 5.0, 5.0)),
        grace=rng.choice((0.06, 0.06, 1.0)),
        idle=_some(rng, 0.05, (0.5, 5.0)),
    )


def world_of(seed: int) -> World:
    """Decide everything that a seed decides."""
    rng = random.Random(f"world {seed}")
    payload = rng.choice((800, rng.randrange(800, 3000), 1024 * 1024))
    streams = rng.choice((1, 1, 1, 2, 3))
    return World(
        weather=rng.choice(("calm", "mild", "mild", "storm", "storm", "storm")),
        until=rng.choice((1.0, 5.0, 20.0, 100.0)),
        caller=_side(rng),
        node=_side(rng),
        max_payload_bytes=payload,
        node_stops_after=_some(rng, 0.04, (0.0, 0.01, rng.uniform(0, 3), rng.uniform(0, 30))),
        plans=tuple(_plan(rng, at, min(payload, 2000)) for at in range(streams)),
    )
