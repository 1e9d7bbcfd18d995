"""One run: publishers and consumers around a server that fails, and its whole history."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.faults.events.history import History
from tests.faults.events.observer import Observer
from tests.faults.events.orders import CONSUMER, STREAM
from tests.faults.events.refusals import read_refusals
from tests.faults.events.stored import left_to_do, read_stream
from tests.faults.processes import Programs

_LOOK_EVERY = 0.05


class Run:
    """Publishers and consumers of one scenario.

    Args:
        programs: Where they run.
        url: What they connect to.
        observer: A connection of its own to the servers, past any proxy.
        env: What all programs are told.
    """

    def __init__(self, programs: Programs, url: str, observer: Observer, **env: str) -> None:
        self.programs = programs
        self.observer = observer
        self._env = {"BUSMICRO_NATS_URL": url, "BUSMICRO_PING_INTERVAL": "1", **env}
        self._publishers: list[str] = []
        self._consumers: list[str] = []
        self._counted: dict[str, tuple[int, int]] = {}
        self.gate = programs.logs / "gate"
        """While this file is there, consumers that are started with `gated` finish no event."""
        self.database = programs.logs / "effects.db"
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            database.execute("CREATE TABLE effects (id TEXT)")
        self._env.setdefault("FAULTS_EFFECTS", str(self.database))

    async def start_consumers(
        self, count: int, *, first: int = 0, keep: bool = False, gated: bool = False, **env: str
    ) -> None:
        """Start consumers and wait until they serve; with `keep`, dead ones are replaced."""
        if gated:
            env["FAULTS_GATE"] = str(self.gate)
        names = [f"c{number}" for number in range(first, first + count)]
        self._consumers = sorted({*self._consumers, *names})
        before = self._serving(names)
        for name in names:
            start = self.programs.keep_running if keep else self.programs.start
            start(name, "consumer.py", name, **{**self._env, **env})
        await self.until(lambda: self._serving(names) >= before + count, within=60.0)

    async def start_publishers(self, *, one: float, many: float, count: int = 0) -> None:
        """Start one publisher that uses `publish` and one that uses `publish_many`.

        Args:
            one: Events a second that the first one publishes.
            many: Events a second that the second one publishes.
            count: How many each publishes; 0 for as many as it can until the run ends.
        """
        for name, way, rate in (("p0", "one", one), ("p1", "many", many)):
            self._publishers = sorted({*self._publishers, name})
            args = (name, way, str(rate), str(count))
            self.programs.start(name, "publisher.py", *args, **self._env)
        await self.acknowledged(min(100, count or 100))

    async def acknowledged(self, more: int, *, within: float = 40.0) -> float:
        """Wait until each publisher has so many more acknowledgements; return how long it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        wanted = {name: self._acks(name) + more for name in self._publishers}
        await self.until(
            lambda: all(self._acks(name) >= count for name, count in wanted.items()), within=within
        )
        return loop.time() - began

    async def acknowledged_in_all(self, count: int, *, within: float = 120.0) -> None:
        """Wait until all publishers together have so many acknowledgements."""
        await self.until(lambda: sum(map(self._acks, self._publishers)) >= count, within=within)

    async def finish(self, *, ask_to_stop: bool = True, within: float = 120.0) -> History:
        """End the publishers, let the consumers catch up, end them, and read everything."""
        if ask_to_stop:
            codes = await self.programs.end(*self._publishers, within=within)
        else:
            codes = await self.programs.wait(*self._publishers, within=within)
        self._must_be_zero(codes)
        await self.until(self.caught_up, within=within)
        await self.until(lambda: all(map(self.programs.serves, self._consumers)))  # also new ones
        self._must_be_zero(await self.programs.end(*self._consumers, within=30.0))
        return await self.read()

    async def read(self) -> History:
        """Read all logs, the whole stream and all effects."""
        history = History()
        for name in self._publishers:
            history.read_publisher(self.log_of(name))
        for name in self._consumers:
            history.read_consumer(self.log_of(name))
        history.stored = await read_stream(self.observer, STREAM)
        if self._env["FAULTS_EFFECTS"]:
            history.read_effects(self.database)
        return history

    async def until(
        self, condition: Callable[[], bool | Awaitable[bool]], *, within: float = 30.0
    ) -> None:
        """Wait for something to become true.

        Raises:
            AssertionError: It did not in time, or a program ended badly; the text says where the
                logs are.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    found = condition()
                    if found if isinstance(found, bool) else await found:
                        return
                    if words := self.programs.last_words():
                        raise AssertionError(f"{words}\nlogs: {self.programs.logs}")
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            raise AssertionError(f"not within {within} s; logs: {self.programs.logs}") from None

    async def time_until(
        self, condition: Callable[[], bool | Awaitable[bool]], *, within: float = 30.0
    ) -> float:
        """Wait for something to become true; return how long it took."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self.until(condition, within=within)
        return loop.time() - began

    async def left(self) -> int:
        """Count the events in the stream that have not been handled."""
        return await left_to_do(self.observer, STREAM, CONSUMER)

    async def caught_up(self) -> bool:
        """Tell whether everything in the stream has been handled."""
        return await self.left() == 0

    async def has_left(self, count: int, *, or_more: bool = False) -> bool:
        """Tell whether just so many events have not been handled."""
        left = await self.left()
        return left >= count if or_more else left == count

    def refused(self, name: str) -> int:
        """Count the errors that a publisher has got."""
        return len(read_refusals(self.log_of(name)))

    def log_of(self, name: str) -> Path:
        """Return where a program leaves its log."""
        return self.programs.logs / f"{name}.log"

    def _acks(self, name: str) -> int:
        """Count a publisher's acknowledgements, reading what its log has more than last time."""
        log = self.log_of(name)
        if not log.exists():
            return 0
        count, at = self._counted.get(name, (0, 0))
        with log.open("rb") as opened:
            opened.seek(at)
            whole, end, _begun = opened.read().rpartition(b"\n")
        self._counted[name] = (count + whole.count(b"acked "), at + len(whole) + len(end))
        return self._counted[name][0]

    def _serving(self, names: list[str]) -> int:
        """Count the starts of these programs, as they log them."""
        outputs = [self.programs.logs / f"{name}.out" for name in names]
        return sum(
            output.read_text("utf-8", "replace").count(" serves as node ")
            for output in outputs
            if output.exists()
        )

    def _must_be_zero(self, codes: dict[str, int]) -> None:
        bad = {name: code for name, code in codes.items() if code}
        assert not bad, f"exit codes {bad}; logs: {self.programs.logs}"
