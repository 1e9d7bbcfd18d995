"""Processes that serve and measure; none outlives the run, however that ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]
ANSWER_WITHIN = 90.0


class WorkerFailed(Exception):
    """A process ended, or did not answer in time."""


class Worker:
    """One process that answers questions; see `benchmarks.worker`.

    It has a group of its own, so that Ctrl-C reaches it only through the end of its questions,
    which also comes when this process is killed.

    Args:
        target: `module:function`.
        given: Arguments of the function.
    """

    def __init__(self, target: str, **given: object) -> None:
        self._what = f"{target} {given}"
        self._is_ready = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", target, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=with_bytecode(),
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if failure is not None:  # Ctrl-C, too: nobody waits for sixteen processes one by one
            self._process.kill()
        self.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def ready(self) -> Self:
        """Return when it is ready; others may start meanwhile.

        Raises:
            WorkerFailed: It did not get ready; the text has the end of what it logged.
        """
        if not self._is_ready:
            self.read()
            self._is_ready = True
        return self

    def ask(self, **question: object):
        """Ask, and return the answer; see `tell` and `read`."""
        self.tell(**question)
        return self.read()

    def tell(self, **question: object) -> None:
        """Ask, without waiting for the answer.

        Raises:
            WorkerFailed: It has ended; the text has the end of what it logged.
        """
        self.ready()
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as broken:
            raise WorkerFailed(f"{self._what} ended: {self._said()}") from broken

    def read(self):
        """Wait for an answer, and return it.

        Raises:
            WorkerFailed: There was none in time; the text has the end of what it logged.
        """
        timer = threading.Timer(ANSWER_WITHIN, self._process.kill)
        timer.daemon = True  # Ctrl-C may come while it starts, and the run would wait for it
        try:
            timer.start()
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise WorkerFailed(f"{self._what} gave no answer: {self._said()}")
        return json.loads(line)

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-1500:]

    def close(self) -> None:
        """End it: politely, then not."""
        try:
            self._process.communicate(timeout=5)
        except (subprocess.TimeoutExpired, ValueError, OSError):
            self._process.kill()
            self._process.wait()
        finally:
            self._log.close()


def once(target: str, question: dict[str, object] | None = None, **given: object):
    """Measure in a process of its own, and return the answer."""
    with Worker(target, **given) as worker:
        return worker.ask(**question or {})


def with_bytecode(**more: str) -> dict[str, str]:
    """The environment of an ordinary start: compiled once, like every installed package."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | more


def cpu_s(pid: int) -> float:
    """Return the processor seconds that all threads of a process have used."""
    threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    if threads:  # in ns, where the kernel keeps it
        return sum(int(thread.read_text("ascii").split()[0]) for thread in threads) / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int | str = "self") -> float:
    """Return the memory that a process holds, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def nats_server() -> Iterator:
    """Run a nats-server around the block."""
    from busmicro import NatsServer

    server = NatsServer()
    asyncio.run(server.start())
    try:
        yield server
    finally:
        asyncio.run(server.stop())
