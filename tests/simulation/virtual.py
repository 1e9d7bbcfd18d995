"""Virtual time: an event loop without clock, sockets or threads, so that a seed decides everything.

Time passes only while everybody waits, and then at once.  What else would differ between two runs
is taken from the seed: `time.monotonic`, `secrets.token_hex` and the module `random`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest import mock

T = TypeVar("T")

_BEGIN = 1_000.0
_MOST_TURNS_AT_ONCE = 20_000


class Stuck(AssertionError):
    """Nothing can happen any more, or too much happens at one moment."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Leaps to the next timer whenever everybody waits."""

    def __init__(self) -> None:
        super().__init__()
        self._now = _BEGIN
        self._turns_now = 0
        self.stood_still = 0.0
        """Seconds that passed in leaps."""
        self._selector = self  # what BaseEventLoop asks to wait

    def time(self) -> float:
        return self._now

    def leap(self, seconds: float) -> None:
        """Let time pass in which nobody gets to run, as if the machine had stood still."""
        self._now += seconds
        self.stood_still += seconds

    @property
    def timers(self) -> int:
        """Timers that are set."""
        return sum(not handle.cancelled() for handle in self._scheduled)

    # --- what BaseEventLoop wants ---------------------------------------------------------------

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise Stuck("everybody waits and no timer is set")
        self._turns_now += 1
        if timeout > 0:
            self._now += timeout
            self._turns_now = 0
        elif self._turns_now > _MOST_TURNS_AT_ONCE:
            raise Stuck(f"busy without end at {self._now:.3f}")
        return []

    def _process_events(self, event_list: list[object]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody is to be woken."""


@contextmanager
def _decided_by(seed: int, loop: VirtualLoop) -> Iterator[None]:
    """Take from the seed and the loop what would come from the machine."""
    before, tokens = random.getstate(), random.Random(f"tokens {seed}")

    def token_hex(nbytes: int = 32) -> str:
        return tokens.randbytes(nbytes).hex()

    random.seed(seed)
    try:
        with (
            mock.patch.object(time, "monotonic", loop.time),
            mock.patch.object(secrets, "token_hex", token_hex),
        ):
            yield
    finally:
        random.setstate(before)


def run(seed: int, work: Callable[[VirtualLoop], Coroutine[object, object, T]]) -> T:
    """Run to the end in a time and with a chance of its own."""
    loop = VirtualLoop()
    with _decided_by(seed, loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop))
