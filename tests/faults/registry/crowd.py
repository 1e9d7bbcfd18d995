"""Nodes of one service, many in one process, that come and go as a seed has it.

Usage: crowd.py LOG NAME COUNT RESTLESS SEED

COUNT places; in each a node is up for a moment, then away for a moment, for RESTLESS seconds in
all.  Then who is up stays up, until the process is killed.  With 0 seconds all are up and stay.

Logs `joined ID`, `left ID`, and `quiet` when nobody will come or go any more.
"""

from __future__ import annotations

import asyncio
import random
import sys

from busmicro import Service
from tests.faults.log import Log, now

LONGEST = 4.0
"""Seconds that a node is up, or away, at most."""


async def hello(name: str) -> str:
    return f"Hello {name}"


class Place:
    """Where one node at a time may be."""

    def __init__(self, name: str, log: Log, chance: random.Random) -> None:
        self._name = name
        self._log = log
        self._chance = chance
        self._made = 0
        self._service: Service | None = None

    async def change(self) -> None:
        """Let a node come where none is, or the one that is there go."""
        if self._service is None:
            self._made += 1
            self._service = Service("crowd", id=f"{self._name}-{self._made}")
            self._service.rpc(hello)
            await self._service.start()
            self._log.write("joined", self._service.id)
        else:
            service, self._service = self._service, None
            await service.stop()
            self._log.write("left", service.id)

    async def be_restless(self, until: float) -> None:
        """Change now and then."""
        while (left := until - now()) > 0:
            await asyncio.sleep(min(left, self._chance.uniform(0.0, LONGEST)))
            await self.change()


async def main(path: str, name: str, count: str, restless: str, seed: str) -> None:
    log = Log(path)
    chance = random.Random(f"{seed} {name}")
    places = [Place(f"{name}-{n}", log, chance) for n in range(int(count))]
    if float(restless) == 0:
        await asyncio.gather(*(place.change() for place in places))
    until = now() + float(restless)
    await asyncio.gather(*(place.be_restless(until) for place in places))
    log.write("quiet")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
