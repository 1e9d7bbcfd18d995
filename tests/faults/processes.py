"""Programs of a run: started, killed, started again when they die, each with a log of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.environment import PYTHONPATH

_LOOK_EVERY = 0.02


class Programs:
    """The Python programs of a run; ended by `stop`, however the run ends.

    Args:
        folder: Where the programs are.
        logs: Where they leave their logs.
    """

    def __init__(self, folder: Path, logs: Path) -> None:
        self._folder = folder
        self.logs = logs
        """Where each program leaves its log, and what it printed in `<name>.out`."""
        self.deaths: Counter[str] = Counter()
        """How often each of those that are kept running has died."""
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        """The programs by name, the dead ones too."""
        self._printed: dict[str, int] = {}
        """Bytes that those of the same name had printed before."""
        self._kept: set[str] = set()
        self._keepers: list[asyncio.Task[None]] = []

    def last_words(self) -> str:
        """Return what programs said that ended badly, though nobody keeps or killed them."""
        bad = [
            name
            for name, process in self.running.items()
            if name not in self._kept and process.poll() not in {None, 0}
        ]
        outputs = [(self.logs / f"{name}.out").read_text("utf-8", "replace") for name in bad]
        return "".join(
            f"{name} ended badly: {out[-1000:]}" for name, out in zip(bad, outputs, strict=True)
        )

    def start(self, name: str, script: str, *args: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a program from the folder; its first argument is where it logs."""
        given = {**os.environ, **env, "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
        given.pop("COVERAGE_PROCESS_START", None)
        with (self.logs / f"{name}.out").open("ab") as out:
            self._printed[name] = out.tell()
            process = subprocess.Popen(
                [sys.executable, str(self._folder / script), str(self.logs / f"{name}.log"), *args],
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.running[name] = process
        return process

    def said(self, name: str) -> str:
        """Return what a program has printed."""
        out = self.logs / f"{name}.out"
        return out.read_text("utf-8", "replace") if out.exists() else ""

    def serves(self, name: str) -> bool:
        """Tell whether a program has said, since it was last started, that it serves as a node."""
        out = (self.logs / f"{name}.out").read_bytes()
        return b" serves as node " in out[self._printed[name] :]

    async def serve(self, *names: str, within: float = 45.0) -> None:
        """Return when each of these programs, started before, serves as a node."""
        await self.until(
            lambda: all(" serves as node " in self.said(name) for name in names), within=within
        )

    async def until(self, condition: Callable[[], bool], *, within: float = 45.0) -> None:
        """Wait for something to become true.

        Raises:
            AssertionError: It did not in time, or a program ended badly; the text says where the
                logs are.
        """
        try:
            async with asyncio.timeout(within):
                while not condition():
                    words = self.last_words()
                    assert not words, f"{words}\nlogs: {self.logs}"
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            raise AssertionError(f"not within {within} s; logs: {self.logs}") from None

    def kill(self, name: str) -> None:
        """End a program as a crash would, and forget it."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def freeze(self, name: str) -> None:
        """Let a program hang (SIGSTOP), until `thaw`; when this returns it runs no more."""
        process = self.running[name]
        process.send_signal(signal.SIGSTOP)
        if hasattr(os, "waitid"):  # not so on macOS before Python 3.13
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self, name: str) -> None:
        """Let it go on (SIGCONT)."""
        self.running[name].send_signal(signal.SIGCONT)

    def keep_running(self, name: str, script: str, *args: str, **env: str) -> None:
        """Start a program, and start it again whenever it dies of itself."""

        async def keep() -> None:
            while True:
                process = self.start(name, script, *args, **env)
                while process.poll() is None:
                    await asyncio.sleep(_LOOK_EVERY)
                self.deaths[name] += 1

        self._kept.add(name)
        self._keepers.append(asyncio.get_running_loop().create_task(keep()))

    async def end(self, *names: str, within: float = 30.0) -> dict[str, int]:
        """Ask programs to end (SIGTERM), none named meaning all; return their exit codes."""
        await self._let_go()
        ending = {name: self.running[name] for name in names or self.running}
        for process in ending.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        return await self.wait(*ending, within=within)

    async def wait(self, *names: str, within: float = 30.0) -> dict[str, int]:
        """Wait until programs have ended of themselves; return their exit codes."""
        processes = {name: self.running[name] for name in names}
        async with asyncio.timeout(within):
            while any(process.poll() is None for process in processes.values()):
                await asyncio.sleep(_LOOK_EVERY)
        return {name: process.returncode for name, process in processes.items()}

    async def stop(self) -> None:
        """Kill what still runs."""
        await self._let_go()
        for process in self.running.values():
            if process.poll() is None:
                process.kill()  # it works on a frozen process too
            process.wait()

    async def _let_go(self) -> None:
        keepers, self._keepers = self._keepers, []
        self._kept.clear()
        for keeper in keepers:
            keeper.cancel()
        results = await asyncio.gather(*keepers, return_exceptions=True)
        for failure in results:
            if isinstance(failure, Exception):
                raise failure
