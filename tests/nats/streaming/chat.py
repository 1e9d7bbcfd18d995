"""The handlers that most tests of streams call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from typing import TypeVar

from pydantic import BaseModel

from busmicro import Call

T = TypeVar("T")


class Number(BaseModel):
    n: int


class Chat:
    """All three shapes; it notes what its handlers have done."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def count(self, to: Number) -> AsyncIterator[Number]:
        """Count from 0; without end, if `to` is negative."""
        n = 0
        try:
            while n != to.n:
                yield Number(n=n)
                n += 1
        finally:
            self.notes.append("count closed")

    async def total(self, numbers: AsyncIterator[Number]) -> Number:
        """Add up."""
        total = 0
        try:
            async for number in numbers:
                total += number.n
                self.notes.append(f"got {number.n}")
        except asyncio.CancelledError:
            self.notes.append("total cancelled")
            raise
        return Number(n=total)

    async def talk(self, numbers: AsyncIterator[Number], call: Call) -> AsyncIterator[Number]:
        """Answer each number with its double."""
        try:
            async for number in numbers:
                yield Number(n=2 * number.n)
            self.notes.append("talk heard the end")
        finally:
            self.notes.append("talk closed")


async def gather(source: AsyncIterable[T], got: list[T]) -> None:
    """Put what comes into a list, which has it even if the source fails later."""
    async for message in source:
        got.append(message)  # noqa: PERF401 - see above


async def numbers(count: int) -> AsyncIterator[Number]:
    """Give so many numbers, from 0."""
    for n in range(count):
        yield Number(n=n)
