"""Processes with many nodes each, and what the registry should say of them."""

from __future__ import annotations

from tests.faults.history import logged
from tests.faults.processes import Programs


class Crowds:
    """Processes with nodes of the service `crowd`.

    Args:
        programs: Where they run.
        url: What they connect to.
        seed: Decides who comes and goes when.
        ttl: Seconds of silence after which a node is gone.
    """

    def __init__(self, programs: Programs, url: str, seed: int, ttl: float) -> None:
        self._programs = programs
        self._env = {"BUSMICRO_NATS_URL": url, "BUSMICRO_REGISTRY_TTL": str(ttl)}
        self._seed = seed
        self.alive: list[str] = []
        """The processes that were not killed."""
        self.killed: list[str] = []
        """Those that were."""

    def start(self, name: str, count: int, *, restless: float = 0.0) -> None:
        """Start a process with so many places for nodes."""
        args = (name, str(count), str(restless), str(self._seed))
        self._programs.start(name, "crowd.py", *args, **self._env)
        self.alive.append(name)

    def kill(self, name: str) -> None:
        """End a process, and all of its nodes, as a crash would."""
        self._programs.kill(name)
        self.alive.remove(name)
        self.killed.append(name)

    def came(self, name: str) -> bool:
        """Tell whether any node of a process has come yet."""
        return any(line.startswith("joined ") for line in self._log(name))

    async def quiet(self, *, within: float) -> None:
        """Wait until nobody comes or goes any more."""
        await self._programs.until(
            lambda: all("quiet" in self._log(name) for name in self.alive), within=within
        )

    @property
    def up(self) -> set[str]:
        """Who is up, by the processes' own word."""
        up: set[str] = set()
        for name in self.alive:
            for line in self._log(name):
                word, _, node = line.partition(" ")
                if word == "joined":
                    up.add(node)
                elif word == "left":
                    up.discard(node)
        return up

    @property
    def joined(self) -> int:
        """How often a node has come, in all processes that there were."""
        logs = (self._log(name) for name in (*self.alive, *self.killed))
        return sum(line.startswith("joined ") for log in logs for line in log)

    def _log(self, name: str) -> list[str]:
        path = self._programs.logs / f"{name}.log"
        return [" ".join(words) for words in logged(path)] if path.exists() else []
