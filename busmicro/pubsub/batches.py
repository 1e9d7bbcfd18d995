"""Batches: events gathered into lists, for handlers that take many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from busmicro.call import Call


class Batches:
    """Gathers events until there are enough of them, or the first has waited for long enough.

    Args:
        most: How many make a full list.
        wait: Seconds that the first one waits for others.
        on_batch: Gets each list.
    """

    def __init__(self, most: int, wait: float, on_batch: Callable[[list[Call]], None]) -> None:
        self._most = most
        self._wait = wait
        self._on_batch = on_batch
        self._gathered: list[Call] = []
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._gathered)

    def add(self, call: Call) -> None:
        """Put one more to the others."""
        self._gathered.append(call)
        if len(self._gathered) >= self._most:
            self._hand_on()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait, self._hand_on)

    def _hand_on(self) -> None:
        gathered = self.take_back()
        if gathered:
            self._on_batch(gathered)

    def take_back(self) -> list[Call]:
        """Return what has been gathered and not handed on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        return gathered
