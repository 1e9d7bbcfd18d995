"""The network between the two processes: it delays, loses, doubles and cuts, until it is fine."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from busmicro.transport import MemoryBroker, Overtaking
from tests.simulation.plans import World
from tests.simulation.virtual import VirtualLoop

CALLER, NODE = "caller", "node"
_REPEATABLE = "crq"
_FOR_EVER = 1e6


@dataclass(frozen=True, slots=True)
class _Odds:
    """How likely what is, for one message."""

    delay: float
    jitter: float
    loss: float
    stretch: float
    double: float
    overtake: float


class FaultyNetwork:
    """Decides for each message; a `busmicro.transport.Network`."""

    def __init__(self, world: World, loop: VirtualLoop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self._mild = world.weather == "mild"
        self._fine_at = loop.time() + world.until
        self._odds = self._odds_of(world)
        self._lossy_until: dict[str, float] = {}
        self._frozen_until: dict[str, float] = {}
        self._may_lose_accept = world.node.ping_every <= 1.0  # else opening it times out before
        self._losses_left = 30 if self._mild else 1_000_000
        self._lost_at = 0.0

    def _odds_of(self, world: World) -> _Odds:
        rng = self._rng
        delay, jitter = rng.choice((0.0, 0.0002, 0.005, 0.05)), rng.choice((0.0, 1.0, 3.0))
        if world.weather == "calm":
            return _Odds(delay, jitter, 0, 0, 0, 0)
        if world.weather == "mild":
            return _Odds(delay, jitter, rng.choice((0, 0.01, 0.1)), 0.01, 0.1, 0.1)
        loss = rng.choice((0, 0, 0.02, 0.2, 0.6))
        return _Odds(delay, jitter, loss, rng.choice((0, 0.01, 0.05)), 0.1, 0.1)

    def freeze(self, name: str, seconds: float) -> None:
        """Let nothing arrive from or at a process for so long; then it all arrives."""
        self._frozen_until[name] = self._loop.time() + seconds

    def deliver(self, source: str, target: str, subject: str, size_bytes: int) -> Sequence[float]:
        """Say when the copies of a message arrive."""
        now, odds, rng = self._loop.time(), self._odds, self._rng
        words = subject.split(".")
        frame = words[3][:1] if words[0] == "_INBOX" and len(words) == 4 else ""
        if source == target:
            return (0.0,)
        frozen = max(self._frozen_until.get(name, now) - now for name in (source, target))
        if now >= self._fine_at:
            return (frozen if frozen > _FOR_EVER / 2 else 0.0,)
        if self._is_lost(source, frame, now):
            return ()
        delay = max(frozen, odds.delay * (1 + odds.jitter * rng.random()))
        if frame in _REPEATABLE and frame:
            if rng.random() < odds.overtake:
                return (Overtaking(delay * rng.random()),)
            if rng.random() < odds.double:
                return (delay, Overtaking(delay * 3 * rng.random()))
        return (delay,)

    def _is_lost(self, source: str, frame: str, now: float) -> bool:
        """Lose single messages and stretches; in mild weather not so many that anybody notices."""
        rng, odds = self._rng, self._odds
        if self._mild:
            if not frame or self._losses_left <= 0 or (frame == "a" and not self._may_lose_accept):
                return False
            self._may_lose_accept &= frame != "a"
            if frame in _REPEATABLE and now - self._lost_at < 30.0:
                return False  # two pings in a row are more than mild
        if rng.random() < odds.stretch:
            longest = 0.1 if self._mild else 6.0
            self._lossy_until[source] = now + rng.choice((0.0, 0.001, 0.1, longest))
        lost = rng.random() < odds.loss or now <= self._lossy_until.get(source, -1.0)
        if lost:
            self._losses_left -= 1
            if frame in _REPEATABLE:
                self._lost_at = now
        return lost


class Faults:
    """Cuts and freezes at moments that the seed has chosen."""

    def __init__(
        self, world: World, loop: VirtualLoop, rng: random.Random, may_flap: Callable[[], bool]
    ) -> None:
        self._world = world
        self._loop = loop
        self._rng = rng
        self._may_flap = may_flap
        self._timers: list[asyncio.TimerHandle] = []
        self.happened: list[str] = []
        """What was done, and when."""

    def begin(self, broker: MemoryBroker, network: FaultyNetwork) -> None:
        """Choose what will happen."""
        world, rng = self._world, self._rng
        if world.weather != "calm":
            for _ in range(rng.choice((0, 1, 1, 2, 6))):
                at = rng.uniform(0, world.until * rng.choice((0.05, 1.0)))
                doing = self._flap if world.weather == "mild" else self._strike
                self._later(at, doing, broker, network)
        self._later(world.until, broker.start)
        self._later(world.until, broker.start, CALLER)
        self._later(world.until, broker.start, NODE)

    def end(self) -> None:
        """Do nothing more."""
        for timer in self._timers:
            timer.cancel()

    def _later(self, seconds: float, doing: Callable[..., None], *given: object) -> None:
        self._timers.append(self._loop.call_later(seconds, doing, *given))

    def _did(self, what: str) -> None:
        self.happened.append(f"{self._loop.time():.4f} {what}")

    def _cut(self, broker: MemoryBroker, name: str | None, seconds: float) -> None:
        self._did(f"cut {name or 'all'} for {seconds} s")
        broker.stop(name)
        if seconds:
            self._later(seconds, broker.start, name)
        else:
            broker.start(name)

    def _flap(self, broker: MemoryBroker, network: FaultyNetwork) -> None:
        """Cut somebody who comes back at once, unless a stream is just being opened."""
        if not self._may_flap():
            self._later(0.3, self._flap, broker, network)
        elif self._rng.random() < 0.3 and not self._loop.stood_still:
            self._leap()
        else:
            self._cut(broker, self._rng.choice((CALLER, NODE, None)), 0.0)

    def _leap(self) -> None:
        seconds = self._rng.choice((0.5, 3.0, 20.0))
        self._did(f"everything stands still for {seconds} s")
        self._loop.leap(seconds)

    def _strike(self, broker: MemoryBroker, network: FaultyNetwork) -> None:
        rng = self._rng
        kind = rng.choice(
            ("cut", "cut", "cut", "both", "freeze", "freeze", "hang", "shrink", "leap")
        )
        seconds = rng.choice((0.0, 0.0005, 0.03, 0.1, 1.0, 6.0, 12.0, 40.0, 60.0))
        if kind == "cut":
            self._cut(broker, rng.choice((CALLER, NODE, None)), seconds)
        elif kind == "both":
            self._cut(broker, CALLER, seconds)
            self._later(
                rng.choice((0.0, 0.01, 0.5)), self._cut, broker, NODE, rng.choice((0.0, 0.1, 3.0))
            )
        elif kind in ("freeze", "hang"):
            seconds = _FOR_EVER if kind == "hang" else seconds
            name = rng.choice((CALLER, NODE))
            self._did(f"{name} is frozen for {seconds} s")
            network.freeze(name, seconds)
        elif kind == "shrink":  # another server, which takes less
            broker.max_payload_bytes = 400
            self._cut(broker, None, 0.0)
        else:
            self._leap()
