"""Listeners: a handler, and the events that reach it.

`CoreListener` for events that nobody keeps: what comes while too many wait is dropped, and counted.
`StreamListener` for those that a stream keeps::

    Intake ──► waiting ──► a worker: wrappers → decode → the user's function
                  │            ├── returned ─────────► +ACK
                  │            ├── failed ───────────► -NAK, delay by the table
                  │            └── for the last time ► dead letter stored, then +TERM
                  └── the node stops ────────────────► -NAK

The server sets no limit to deliveries; the limit is kept here.  So the delivery after the last
allowed one still comes, to some node, and that node makes the dead letter which those that crashed
could not make: nothing is left behind for anybody to sweep up (ADR 0014).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Final, Protocol

from busmicro.bus import Bus
from busmicro.call import Call, Handler, enter_call
from busmicro.delivery import attempt_of
from busmicro.errors import CallError, DeadlineExceeded, InvalidArgument
from busmicro.pubsub.arrival import Arrival, Reader
from busmicro.pubsub.batches import Batches
from busmicro.pubsub.deadletters import DeadLetters
from busmicro.pubsub.delivery import ACK, TERM, Fate, as_call_error, judge, nak, silent_end
from busmicro.pubsub.handlers import Subscriber
from busmicro.pubsub.intake import Intake
from busmicro.pubsub.workers import Workers
from busmicro.transport import Subscription

log = logging.getLogger("busmicro.events")

_BURY_AGAIN: Final = 30.0
"""Seconds after which an event is tried again whose dead letter could not be stored."""


class Listener(Protocol):
    """A handler that listens."""

    async def start(self) -> Subscription:
        """Listen; in force after a barrier."""
        ...

    def stop_listening(self) -> None:
        """Take no more; what is on its way still comes until a barrier has passed."""
        ...

    async def stop(self, grace: float) -> int:
        """Give back what waits, finish what runs, end the rest; tell how many had to be ended."""
        ...

    def end_all(self) -> None:
        """End what runs, now."""
        ...

    @property
    def running(self) -> int:
        """How many events are being handled."""
        ...


def _guard(chain: Handler, timeout: float | None) -> Handler:
    """Give each event so many seconds."""
    if timeout is None:
        return chain

    async def guarded(call: Call) -> object:
        call.deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(call.deadline):
                return await chain(call)
        except TimeoutError as late:
            raise DeadlineExceeded(f"not handled within {timeout:g} s") from late

    return guarded


class _Intaking(ABC):
    """What both kinds of listener have: workers, lists, keys."""

    def __init__(self, subscriber: Subscriber, chain: Handler, bus: Bus) -> None:
        options = subscriber.options
        self._bus = bus
        self._subscriber = subscriber
        self._figures = subscriber.figures
        self._chain = _guard(chain, options.timeout)
        self._reader = Reader(subscriber.spec, subscriber.topic)
        self._name = f"{subscriber.spec.endpoint} {options.group}".strip()
        self._batches = Batches(options.batch, options.batch_wait, self._put_list)
        self._workers: Workers[Arrival] = Workers(
            self._handle,
            options.concurrency,
            name=self._name,
            key_of=self._key if options.key else None,
        )
        self._lists: Workers[list[Arrival]] = Workers(
            self._handle_list, options.concurrency, name=self._name
        )
        self._take = self._batches.add if subscriber.takes_list else self._workers.put

    @property
    def running(self) -> int:
        """How many events, or lists of them, are being handled."""
        return self._workers.running + self._lists.running

    @property
    def _waiting(self) -> int:
        lists = sum(map(len, self._lists.waiting)) if self._lists.waiting else 0
        return len(self._workers.waiting) + len(self._batches) + lists

    def _put_list(self, arrivals: list[Arrival]) -> None:
        self._lists.put(arrivals)

    def _key(self, arrival: Arrival) -> Hashable:
        key_of = self._subscriber.options.key
        try:
            message = self._reader.message(arrival)
        except InvalidArgument:
            return arrival  # it does not decode, so it stands in nobody's way
        key: Hashable = key_of(message) if key_of else None
        return key

    def _take_back(self) -> list[Arrival]:
        """Return everything that nobody has begun with."""
        lists = (arrival for arrivals in self._lists.take_back() for arrival in arrivals)
        return [*self._workers.take_back(), *lists, *self._batches.take_back()]

    def end_all(self) -> None:
        """End what runs, now."""
        self._workers.end_all()
        self._lists.end_all()

    async def _stop_workers(self, grace: float) -> int:
        ended = await asyncio.gather(self._workers.stop(grace), self._lists.stop(grace))
        return sum(ended)

    @abstractmethod
    async def _handle(self, arrival: Arrival) -> None:
        """Handle one event; must not raise."""

    @abstractmethod
    async def _handle_list(self, arrivals: list[Arrival]) -> None:
        """Handle a list of events; must not raise."""

    def _count_failure(self, failure: CallError) -> None:
        self._figures.failed += 1
        self._figures.last_error = str(failure)


class CoreListener(_Intaking):
    """Handles events that nobody keeps: at most once."""

    def __init__(self, subscriber: Subscriber, chain: Handler, bus: Bus) -> None:
        super().__init__(subscriber, chain, bus)
        self._most = subscriber.options.waiting
        self._subscription: Subscription | None = None

    async def start(self) -> Subscription:
        """Listen; in force after a barrier."""
        topic, group = self._subscriber.topic, self._subscriber.options.group
        subject = f"{self._bus.subjects.prefix}{topic.pattern}"
        self._subscription = self._bus.transport.subscribe(subject, self._on_event, queue=group)
        return self._subscription

    def stop_listening(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            self._bus.transport.unsubscribe(self._subscription)

    async def stop(self, grace: float) -> int:
        """Handle what waits, too: nobody else has it."""
        self._lists_of_what_waits()
        return await self._stop_workers(grace)

    def _lists_of_what_waits(self) -> None:
        if gathered := self._batches.take_back():
            self._put_list(gathered)

    def _on_event(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        if self._waiting >= self._most:
            self._drop()
        else:
            self._take(Arrival(subject, b"", header, payload))

    def _drop(self) -> None:
        dropped = self._figures.dropped = self._figures.dropped + 1
        if dropped & (dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th, …
            log.warning(
                "%s: %d events wait already, so this one is dropped (%d so far); raise "
                "concurrency= or waiting=, or give the topic a stream",
                self._name,
                self._most,
                dropped,
            )

    async def _handle(self, arrival: Arrival) -> None:
        await self._run(self._reader.call(arrival), 1)

    async def _handle_list(self, arrivals: list[Arrival]) -> None:
        call, wrong = self._reader.call_of_many(arrivals)
        for failure in wrong.values():
            self._failed(failure)
        if call.message:
            await self._run(call, len(arrivals) - len(wrong))

    async def _run(self, call: Call, count: int) -> None:
        enter_call(call)
        try:
            await self._chain(call)
        except Exception as failure:
            self._failed(as_call_error(failure))
        else:
            self._figures.handled += count

    def _failed(self, failure: CallError) -> None:
        self._count_failure(failure)
        log.error("%s: an event is lost: %s", self._name, failure)


class StreamListener(_Intaking):
    """Handles events that a stream keeps: each at least once."""

    def __init__(
        self, subscriber: Subscriber, chain: Handler, bus: Bus, intake: Intake, letters: DeadLetters
    ) -> None:
        super().__init__(subscriber, chain, bus)
        self._options = subscriber.options
        self._letters = letters
        self._intake = intake
        intake.deliver_to(self._take)

    async def start(self) -> Subscription:
        """Make sure of stream, consumer and dead letters, and listen; in force after a barrier."""
        await self._letters.prepare()
        return await self._intake.start()

    def stop_listening(self) -> None:
        """Take no more."""
        self._intake.stop_pulling()

    async def stop(self, grace: float) -> int:
        """Give back what waits, finish what runs, give back what had to be ended."""
        self._intake.give_back(self._take_back())
        ended = await self._stop_workers(grace)
        await self._intake.close()
        return ended

    # --- one event ------------------------------------------------------------------------------

    async def _handle(self, arrival: Arrival) -> None:
        attempt = attempt_of(arrival.ack)
        while True:
            pause = await self._attempt(arrival, attempt)
            if pause is None:
                return
            if self._options.key is None:
                self._intake.settle(arrival, nak(pause))
                return
            await asyncio.sleep(pause)  # in its lane: those behind it must not overtake
            attempt += 1

    async def _attempt(self, arrival: Arrival, attempt: int) -> float | None:
        """Try to handle an event; return the pause before the next attempt, if any."""
        call = self._reader.call(arrival)
        if attempt > self._options.max_deliver:
            await self._bury(arrival, call, silent_end(attempt - 1), attempt - 1)
            return None
        enter_call(call)
        try:
            await self._chain(call)
        except Exception as failure:
            return await self._failed(arrival, call, as_call_error(failure), attempt)
        self._figures.handled += 1
        self._intake.settle(arrival, ACK)
        return None

    async def _failed(
        self, arrival: Arrival, call: Call, failure: CallError, attempt: int
    ) -> float | None:
        self._count_failure(failure)
        verdict = judge(call, failure, attempt, self._options)
        if verdict.fate is Fate.DEAD:
            await self._bury(arrival, call, failure, attempt)
            return None
        log.warning(
            "%s: attempt %d of %d failed, the next one in %g s: %s",
            self._name,
            attempt,
            self._options.max_deliver,
            verdict.pause,
            failure,
        )
        return verdict.pause

    async def _bury(self, arrival: Arrival, call: Call, failure: CallError, attempts: int) -> None:
        """Give an event up: its dead letter is stored first, then the stream may forget it."""
        label = self._intake.consumer.label
        try:
            await self._letters.bury(call, failure, consumer=label, attempts=attempts)
        except CallError as unburied:
            log.error("%s: a dead letter could not be stored: %s", self._name, unburied)  # noqa: TRY400
            self._intake.settle(arrival, nak(_BURY_AGAIN))
            return
        self._figures.dead += 1
        log.error("%s: an event went to the dead letters: %s", self._name, failure)
        self._intake.settle(arrival, TERM)

    # --- lists of events ------------------------------------------------------------------------

    async def _handle_list(self, arrivals: list[Arrival]) -> None:
        """Handle many; if that fails, one by one, so that one bad event does not take others."""
        left = [arrival for arrival in arrivals if not await self._is_over(arrival)]
        call, wrong = self._reader.call_of_many(left) if left else (None, {})
        for arrival, failure in wrong.items():
            await self._bury(arrival, self._reader.call(arrival), failure, attempt_of(arrival.ack))
        good = [arrival for arrival in left if arrival not in wrong]
        if call is None or not good:
            return
        enter_call(call)
        try:
            await self._chain(call)
        except Exception as failure:
            await self._list_failed(good, call, as_call_error(failure))
        else:
            self._figures.handled += len(good)
            for arrival in good:
                self._intake.settle(arrival, ACK)

    async def _is_over(self, arrival: Arrival) -> bool:
        """Bury an event that has been delivered once more than allowed."""
        attempts = attempt_of(arrival.ack) - 1
        if attempts < self._options.max_deliver:
            return False
        await self._bury(arrival, self._reader.call(arrival), silent_end(attempts), attempts)
        return True

    async def _list_failed(
        self, arrivals: Sequence[Arrival], call: Call, failure: CallError
    ) -> None:
        if len(arrivals) > 1:
            for arrival in arrivals:
                await self._handle_list([arrival])
            return
        arrival = arrivals[0]
        single = self._reader.call(arrival)
        single.began = call.began
        pause = await self._failed(arrival, single, failure, attempt_of(arrival.ack))
        if pause is not None:
            self._intake.settle(arrival, nak(pause))
