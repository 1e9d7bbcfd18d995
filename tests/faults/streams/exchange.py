"""A node and a caller, each a process with its own way to the server, and what became of them."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.processes import Programs

LOOK_EVERY = 0.002
REPAIR = b".r _INBOX."
"""How a request for a repair begins on the wire, after the address."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one stream with numbered messages each way."""

    received: int
    """Messages that the caller took."""
    wrong: str
    """What was wrong with them."""
    told: int
    """Messages that the node says it took."""
    stall: float
    """The longest time between two messages, at either end."""
    error: str
    """How it ended; empty if well."""
    took: float
    """Seconds, from opening to the end."""


class Exchange:
    """One node and one caller with some streams.

    Args:
        programs: Where they run.
        caller_url: What the caller connects to.
        node_url: What the node connects to.
        env: What both are told.
    """

    def __init__(self, programs: Programs, caller_url: str, node_url: str, **env: str) -> None:
        self._programs = programs
        self._caller_url = caller_url
        self._node_url = node_url
        self._env = env

    async def start(self, *args: object) -> None:
        """Start the node, then the caller with these arguments; return when it has its streams."""
        env = {"BUSMICRO_NATS_URL": self._node_url, **self._env}
        self._programs.start("node", "node.py", "node", **env)
        await self.until(lambda: " serves as node " in self._said("node.out"))
        env = {"BUSMICRO_NATS_URL": self._caller_url, **self._env}
        self._programs.start("caller", "caller.py", *map(str, args), **env)
        await self.until(lambda: "open\n" in self._said("caller.log"))

    async def came(self, count: int, *, within: float = 60.0) -> bool:
        """Wait until so many messages have come to the caller; tell whether it still runs.

        It does, unless a stream failed: no stream ends before `finish`.
        """
        await self.until(lambda: self._came() >= count or self._is_over, within=within)
        return not self._is_over

    async def finish(self, *, within: float) -> list[Outcome]:
        """Let the streams end, then the node, and return what became of each stream."""
        self._programs.running["caller"].send_signal(signal.SIGUSR1)
        await self.until(lambda: self._is_over, within=within)
        codes = await self._programs.end("node")
        codes |= await self._programs.wait("caller")
        assert codes == {"caller": 0, "node": 0}, f"{codes}; logs: {self._programs.logs}"
        lines = self._said("caller.log").splitlines()
        return [Outcome(**json.loads(line)) for line in lines if line.startswith("{")]

    async def until(self, condition: Callable[[], bool], *, within: float = 30.0) -> None:
        """Wait for something to become true.

        Raises:
            AssertionError: It did not in time, or a program ended badly; the text says where the
                logs are.
        """
        try:
            async with asyncio.timeout(within):
                while not condition():
                    words = self._programs.last_words()
                    assert not words, f"{words}\nlogs: {self._programs.logs}"
                    await asyncio.sleep(LOOK_EVERY)
        except TimeoutError:
            raise AssertionError(f"not within {within} s; logs: {self._programs.logs}") from None

    @property
    def _is_over(self) -> bool:
        return self._programs.running["caller"].poll() is not None

    def _came(self) -> int:
        last = self._said("caller.log").rpartition("at ")[2].split("\n")[0]
        return int(last) if last.isdecimal() else 0

    def _said(self, name: str) -> str:
        path = self._programs.logs / name
        return path.read_text("utf-8", "replace") if path.exists() else ""
