"""Keep replies for a while: ask once, answer many times."""

from __future__ import annotations

import asyncio
import math
import pickle
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from copy import copy
from hashlib import blake2b
from typing import Final, TypeAlias

from busmicro.call import Call, Handler, Kind
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import CallError, Code, DeadlineExceeded, SetupError
from busmicro.headers import ATTEMPT, TIMEOUT, TRACE, Headers

KeyOf: TypeAlias = Callable[[Call], Hashable]

_LONG: Final = 64
_SAY_NOTHING: Final = frozenset(name.casefold() for name in (ATTEMPT, TIMEOUT, *TRACE))
"""Headers that differ from call to call and do not change the reply."""
_NOT_SHARED: Final = frozenset({Code.DEADLINE_EXCEEDED, Code.CANCELLED})
"""How a call ends because of its caller; whoever waits with it may have better luck."""


class Cache:
    """Answers calls with the reply that an equal call got, for `ttl` seconds.

    Equal calls that are made at the same time become one. Only unary calls of endpoints that say
    `idempotent=True` are kept, and only replies, never failures. The age of a reply counts from the
    moment its call was made, so nobody is told what was true longer than `ttl` seconds ago. All who
    ask get the same object: leave it as it is.

    Args:
        ttl: Seconds, more than 0.
        size: How many replies are kept, 1 or more; the one not used for longest goes first.
        key: What makes two calls of an endpoint equal; None from it for a call that is to pass.
            Left out, message and headers do, but for those of tracing. A message is equal if it
            pickles to the same bytes.
        idempotent_only: Leave calls alone that do not say that they are idempotent.
        clock: Where time comes from.

    Raises:
        SetupError: A number is out of range.
    """

    def __init__(
        self,
        ttl: float,
        *,
        size: int = 1_024,
        key: KeyOf | None = None,
        idempotent_only: bool = True,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not 0 < ttl < math.inf:
            raise SetupError(f"Cache({ttl}): say seconds, more than 0")
        if size < 1:
            raise SetupError(f"Cache(size={size}): say 1 or more")
        self._ttl = ttl
        self._size = size
        self._key_of = key or _same
        self._idempotent_only = idempotent_only
        self._clock = clock
        self._kept: OrderedDict[Hashable, _Flight] = OrderedDict()  # the last used one is last
        self._under_way: dict[Hashable, _Flight] = {}
        self.hits = 0
        """How many calls were answered without asking."""
        self.misses = 0
        """How many were made."""

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forget every reply; calls that are under way will not be kept either."""
        self._kept.clear()
        self._under_way.clear()

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Answer it, or have it answered and keep the reply."""
        spec = call.spec
        if spec.kind is not Kind.UNARY or not (spec.idempotent or not self._idempotent_only):
            return call_next(call)
        key = self._key_of(call)
        if key is None:
            return call_next(call)
        # A chain belongs to one endpoint and one type of reply, so it is part of the key.
        return self._answer((call_next, key), call, call_next)

    async def _answer(self, key: Hashable, call: Call, call_next: Handler) -> object:
        while True:
            now = self._clock.now()
            flight = self._kept.get(key)
            if flight is not None and now - flight.began < self._ttl:
                self._kept.move_to_end(key)
                return self._hit(flight, call)
            flight = self._under_way.get(key)
            if flight is None or now - flight.began >= self._ttl:
                return await self._ask(key, call, call_next, now)
            await flight.ended(call)
            if flight.failure is not None:
                raise copy(flight.failure) from flight.failure
            if flight.replied:
                return self._hit(flight, call)
            # whoever asked has given up: it is this one's turn to ask

    def _hit(self, flight: _Flight, call: Call) -> object:
        self.hits += 1
        if flight.reply_headers is not None:
            call.reply_headers = flight.reply_headers.copy()
        return flight.reply

    async def _ask(self, key: Hashable, call: Call, call_next: Handler, now: float) -> object:
        self.misses += 1
        flight = self._under_way[key] = _Flight(now)
        try:
            reply = await call_next(call)
            flight.land(call, reply)
            if self._under_way.get(key) is flight:
                self._keep(key, flight)
        except CallError as failure:
            flight.failure = None if failure.code in _NOT_SHARED else failure
            raise
        finally:
            if self._under_way.get(key) is flight:
                del self._under_way[key]
            flight.wake()
        return reply

    def _keep(self, key: Hashable, flight: _Flight) -> None:
        self._kept[key] = flight
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


class _Flight:
    """One call that others may share, and what came of it."""

    __slots__ = ("_ended", "began", "failure", "replied", "reply", "reply_headers")

    def __init__(self, began: float) -> None:
        self.began = began
        self.replied = False
        self.reply: object = None
        self.reply_headers: Headers | None = None
        self.failure: CallError | None = None
        self._ended: asyncio.Event | None = None  # most calls have nobody who waits with them

    def land(self, call: Call, reply: object) -> None:
        """Take the reply."""
        self.reply, self.replied = reply, True
        if call.has_reply_headers:
            self.reply_headers = call.reply_headers.copy()

    def wake(self) -> None:
        """Tell those who wait."""
        if self._ended is not None:
            self._ended.set()

    async def ended(self, call: Call) -> None:
        """Wait for the end, within the deadline of one who waits."""
        if self._ended is None:
            self._ended = asyncio.Event()
        try:
            async with asyncio.timeout_at(call.deadline):
                await self._ended.wait()
        except TimeoutError as late:
            raise DeadlineExceeded("an equal call was not answered in time", not_run=True) from late


def _same(call: Call) -> Hashable:
    """Make the key of a call from its message, or its payload, and its headers."""
    message = call.payload or _pickled(call)
    if len(message) > _LONG:  # a megabyte is not worth keeping to tell calls apart
        message = blake2b(message, digest_size=16).digest()
    if not call.has_headers:
        return message
    said = (item for item in call.headers.items() if item[0].casefold() not in _SAY_NOTHING)
    return message, frozenset(said)


def _pickled(call: Call) -> bytes:
    try:
        return pickle.dumps(call.message)
    except (pickle.PicklingError, TypeError, AttributeError) as wrong:
        raise SetupError(
            f"messages of {call.spec.service}.{call.spec.endpoint} cannot be told apart ({wrong}): "
            "say Cache(…, key=…)"
        ) from wrong
