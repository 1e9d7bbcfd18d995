"""What every contender of the calls promises."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

Ask = Callable[[object], Awaitable[object]]
"""Sends a request and returns the reply, decoded."""


class Caller(Protocol):
    """Makes the function that calls; `codec` is `json` or `protobuf`."""

    def __call__(self, codec: str, *, headers: bool) -> Ask: ...


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody who answers calls in one process and makes them in another."""

    name: str
    serve: Callable[[AsyncExitStack, str], Awaitable[None]]
    """Answers from its return until the stack is left; told the URL of the nats-server."""
    connect: Callable[[AsyncExitStack, str], Awaitable[Caller]]
    needs: str = ""
    """The package that it needs; where that is not installed it is left out, and that is said."""
    since: tuple[int, int] = (3, 11)
    """The oldest Python that it runs on."""
    codecs: tuple[str, ...] = ("json", "protobuf")

    @property
    def absent(self) -> str:
        """Why it cannot be measured here; empty if it can."""
        if sys.version_info[:2] < self.since:
            return f"needs Python {'.'.join(map(str, self.since))}"
        if self.needs and importlib.util.find_spec(self.needs) is None:
            return "not installed"
        return ""
