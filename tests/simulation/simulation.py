"""One simulated world: a client, a service, streams between them, and what must hold of it all."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from busmicro import Client, Service, Settings
from busmicro.bus import Bus
from busmicro.transport import MemoryBroker
from tests.simulation.applications import Caller, Record, Work
from tests.simulation.judge import judge
from tests.simulation.network import CALLER, NODE, Faults, FaultyNetwork
from tests.simulation.plans import Side, World, world_of
from tests.simulation.virtual import Stuck, VirtualLoop, run
from tests.simulation.wire import Wire

BUS = "simulated"
PATIENCE = 120.0
"""Seconds of fine weather after which every stream is over, its own pauses not counted."""


@dataclass(slots=True)
class Verdict:
    """What a run has shown."""

    seed: int
    faults: list[str] = field(default_factory=list)
    """What must not happen and did."""
    digest: str = ""
    """Of everything that passed the wire."""
    frames: int = 0
    seconds: float = 0.0
    """Virtual ones."""
    outcomes: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """What passed the wire, if asked for."""


class _Complaints(logging.Handler):
    """Errors that were logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "busmicro.handler":  # what handlers raise is planned
            self.said.append(f"logged: {self.format(record)}")


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Gather the errors that anybody logs, and keep the rest quiet."""
    complaints = _Complaints()
    loggers = [logging.getLogger(name) for name in ("busmicro", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(complaints)
        logger.propagate = False
        logger.setLevel(logging.ERROR)
    try:
        yield complaints.said
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(complaints)
            logger.propagate = propagate
            logger.setLevel(level)


@cache
def _settings() -> Settings:
    return Settings(nats_url=f"memory://{BUS}")


class Simulation:
    """A world that a seed decides; it runs once."""

    def __init__(self, seed: int, *, log: bool = False) -> None:
        self.seed = seed
        self.world: World = world_of(seed)
        self.records = [Record(plan) for plan in self.world.plans]
        self.verdict = Verdict(seed)
        self._rng = random.Random(f"weather {seed}")
        self._log = log

    def run(self) -> Verdict:
        """Let it happen and judge it."""
        with _listening() as complaints:
            try:
                run(self.seed, self._live)
            except Stuck as stuck:
                self.verdict.faults.append(str(stuck))
            gc.collect(0)  # tasks that nobody waits for complain when they go
        self.verdict.faults += complaints
        for record in self.records:
            self.verdict.faults += record.faults
        return self.verdict

    async def _live(self, loop: VirtualLoop) -> None:
        self._loop = loop
        broker = MemoryBroker.named(BUS)
        broker.rng = random.Random(self.seed)
        service = Service("work", id=NODE, settings=self._side(NODE, self.world.node))
        service.handle(Work(self.records))
        await service.start()
        self._client = client = Client(settings=self._side(CALLER, self.world.caller))
        async with client:
            faults = self._begin(broker, [client.bus, service.bus])
            began = loop.time()
            callers = [loop.create_task(Caller(client, record).run()) for record in self.records]
            stopping = loop.create_task(self._stop(service))
            await self._over(callers, client.bus, service.bus)
            faults.end()
            broker.network = None
            for name in (None, CALLER, NODE):
                broker.start(name)
            self.verdict.seconds = loop.time() - began
            await client.bus.transport.wait_connected()
            if self.world.node_stops_after is None:
                await service.bus.transport.wait_connected()
                await service.stop(grace=0.0)
            await stopping
        await asyncio.sleep(0.01)
        self._look_for_leftovers()
        self._conclude(began, faults)

    async def _stop(self, service: Service) -> None:
        """Stop the service in the middle of it, in some worlds."""
        if self.world.node_stops_after is not None:
            await asyncio.sleep(self.world.node_stops_after)
            await service.stop(grace=1.0)

    def _side(self, name: str, side: Side) -> Settings:
        return _settings().model_copy(update={"name": name, **side.settings})

    def _begin(self, broker: MemoryBroker, buses: list[Bus]) -> Faults:
        """Let the weather begin."""
        wire = self._wire = Wire(self.world, self.records, self._loop.time)
        if self._log:
            wire.log = self.verdict.log
        wire.watch(broker)
        self._watch_queues(wire, buses)
        broker.max_payload_bytes = self.world.max_payload_bytes
        for bus in buses:
            bus.transport.max_payload_bytes = self.world.max_payload_bytes
        network = FaultyNetwork(self.world, self._loop, self._rng)
        broker.network = network
        faults = Faults(self.world, self._loop, self._rng, self._may_flap)
        faults.begin(broker, network)
        if self._log:
            faults.happened = self.verdict.log
        return faults

    def _watch_queues(self, wire: Wire, buses: list[Bus]) -> None:
        """Look, with each message, at what both ends hold."""
        see, sides = wire.see, (self.world.caller, self.world.node)

        def looked(*message: bytes) -> None:
            see(*message)
            for bus, mine, other in zip(buses, sides, reversed(sides), strict=True):
                for link in bus.frames._ends.values():
                    if len(link.end.incoming.waiting) > mine.window:
                        self.verdict.faults.append(f"more than {mine.window} messages wait")
                    kept = len(link.end.outgoing.unacked)
                    if kept > max(other.window, mine.window) + 2:
                        self.verdict.faults.append(f"{kept} frames are kept")

        wire.see = looked

    def _may_flap(self) -> bool:
        """Is no stream just being opened?"""
        return not any(link.asked for link in self._client.bus.frames._ends.values())

    async def _over(self, callers: list[asyncio.Task[None]], caller: Bus, node: Bus) -> None:
        """Wait until every stream is over at both ends."""
        pauses = sum(plan.takes for plan in self.world.plans)
        limit = self._loop.time() + self.world.until + pauses + PATIENCE
        _done, pending = await asyncio.wait(callers, timeout=limit - self._loop.time())
        for task in pending:
            self.verdict.faults.append(f"a caller does not end: {task.get_stack(limit=1)}")
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        for task in callers:
            if not task.cancelled() and (failure := task.exception()) is not None:
                self.verdict.faults.append(f"a caller failed: {failure!r}")
        slow = self.world.weather != "calm"
        at_most = self._loop.time() + (self.world.until + PATIENCE if slow else 1.0)
        await self._until(lambda: not len(caller.frames), at_most, "the caller's end is left")
        running = [record for record in self.records if record.entered]
        ended = lambda: all(record.node.ended_at is not None for record in running)  # noqa: E731
        await self._until(ended, at_most, "a handler does not end")
        await self._until(lambda: not len(node.frames), at_most, "the node's end is left")

    async def _until(self, condition: Callable[[], bool], at_most: float, what: str) -> None:
        while not condition():
            if self._loop.time() > at_most:
                self.verdict.faults.append(what)
                return
            await asyncio.sleep(0.05)

    def _look_for_leftovers(self) -> None:
        faults = self.verdict.faults
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        faults += sorted(f"a task is left: {task.get_coro()}" for task in tasks)
        if self._loop.timers:
            left = [handle for handle in self._loop._scheduled if not handle.cancelled()]
            faults.append(f"timers are left: {left}")

    def _conclude(self, began: float, faults: Faults) -> None:
        verdict = self.verdict
        verdict.digest, verdict.frames = self._wire.digest, self._wire.frames
        for record in self.records:
            fine_at = began + self.world.until
            judge(self.world, record, fine_at=fine_at, stood_still=self._loop.stood_still)
            caller, node = record.caller, record.node
            verdict.outcomes.append(
                f"{record.plan.shape} {caller.outcome!r} {caller.received}/{node.sent} "
                f"{node.outcome!r} {node.received}/{caller.sent}"
            )
        if verdict.frames > 2_000 + 60 * verdict.seconds:
            verdict.faults.append(f"{verdict.frames} messages in {verdict.seconds:.1f} s")


def complain(verdict: Verdict) -> str:
    """Say what is wrong and how to see it again."""
    lines = [f"seed {verdict.seed}: {len(verdict.faults)} faults", *verdict.faults[:8]]
    lines += [*verdict.outcomes]
    lines.append(f"again: BUSMICRO_SEED={verdict.seed} pytest tests/simulation/test_streams.py")
    return "\n  ".join(lines)
