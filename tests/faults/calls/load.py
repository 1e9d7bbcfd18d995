"""Calls at a steady rate, and what became of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from busmicro import CallError, Client
from tests.faults.history import Operations, logged
from tests.faults.log import now

_LOOK_EVERY = 0.005
_CATCHES_UP = 0.1
"""Seconds whose calls are made late, when this machine stood still; more would be a rush."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A call that has come to an end."""

    value: str
    began: float
    """When it was made, by the clock that all processes of this machine share."""
    took: float
    node: str
    """Who answered; empty if it failed."""
    failure: CallError | None = None


@dataclass
class Load:
    """Makes calls at a steady rate, for `async with`; when the block is left, all have ended."""

    client: Client
    rate: float
    """How many a second."""
    name: str = "a"
    """With a number behind it, what each call is known by."""
    endpoint: str = "hello"
    ended: list[Ended] = field(default_factory=list)
    operations: Operations = field(default_factory=Operations)
    """What was asked for; `read` adds what nodes have seen of it."""
    _stopped: bool = False
    _held: bool = False

    async def __aenter__(self) -> Self:
        self._running = asyncio.get_running_loop().create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stopped = True
        if exc is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        else:
            await self._running

    async def _run(self) -> None:
        due = now()
        async with asyncio.TaskGroup() as group:
            while not self._stopped:
                due = max(due + 1 / self.rate, now() - _CATCHES_UP)
                await asyncio.sleep(max(0.0, due - now()))
                while self._held:
                    await asyncio.sleep(_LOOK_EVERY)
                group.create_task(self._one(f"{self.name}-{len(self.operations.invoked)}"))
                self.operations.invoked.append(f"{self.name}-{len(self.operations.invoked)}")

    async def _one(self, value: str) -> None:
        began = now()
        operations, node, failed = self.operations, "", None
        try:
            reply = await self.client.call("greeter", self.endpoint, value, returns=str)
        except CallError as failure:
            failed = failure
            (operations.failed if failure.not_run else operations.unknown).append(value)
        else:
            answered, node = reply.split()  # somebody else's reply would be an outcome of theirs
            operations.ok.append(answered)
        self.ended.append(Ended(value, began, now() - began, node, failed))

    @property
    def calls(self) -> int:
        """How many have been made."""
        return len(self.operations.invoked)

    @property
    def failures(self) -> list[Ended]:
        """The calls that failed."""
        return [call for call in self.ended if call.failure is not None]

    async def made(self, more: int) -> None:
        """Return when so many more calls have been made."""
        wanted = self.calls + more
        while self.calls < wanted:
            assert not self._running.done()
            await asyncio.sleep(_LOOK_EVERY)

    async def few_under_way(self, most: int = 3) -> None:
        """Return when no more calls than these are under way: as few as a kill may cost.

        If that takes long, because the machine is busy, none are made until then.
        """
        began = now()
        while self.calls - len(self.ended) > most:
            self._held = now() > began + 2.0
            await asyncio.sleep(_LOOK_EVERY)
        self._held = False

    def since(self, moment: float) -> list[Ended]:
        """Return the calls that were made after a moment."""
        return [call for call in self.ended if call.began > moment]

    async def until(self, when: float) -> None:
        """Return at a moment of the clock that all processes share."""
        await asyncio.sleep(max(0.0, when - now()))
        assert not self._running.done()

    def read(self, *logs: Path) -> Operations:
        """Add what nodes have written down, and return all of it."""
        for words in (words for log in logs for words in logged(log)):
            seen = self.operations.begun if words[0] == "began" else self.operations.done
            seen.append(words[1])
        return self.operations


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def p99(calls: Iterable[Ended]) -> float:
    """Return how long 99 of 100 calls took at most."""
    return quantile((call.took for call in calls), 0.99)
