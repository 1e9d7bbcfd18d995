"""SIGINT and SIGTERM while a service runs: the first stops it, the second ends what runs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Self


class StopSignals:
    """Waits for signals, inside its `with` block.

    Args:
        end_running: What the second signal does.
    """

    def __init__(self, end_running: Callable[[], None]) -> None:
        self._end_running = end_running
        self._loop = asyncio.get_running_loop()
        self.starting = asyncio.current_task()
        """What a signal cancels as long as nothing is served; None afterwards."""
        self.received = asyncio.Event()
        """Set by the first signal."""

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self.starting is not None:
            self.starting.cancel()
        elif self.received.is_set():
            self._end_running()
        self.received.set()
