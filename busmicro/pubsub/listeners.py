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
could not make, and tries the event once more, alone: nothing is left behind for anybody to sweep
up, and no event is buried for what another did (ADR 0014).
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Hashable
from typing import Final, Protocol, TypeAlias

from busmicro.bus import Bus
from busmicro.call import Call, Handler, enter_call
from busmicro.delivery import attempt_of, first_attempt, sequence_of
from busmicro.errors import CallError, DeadlineExceeded, InvalidArgument
from busmicro.pubsub.batches import Batches
from busmicro.pubsub.deadletters import DeadLetters
from busmicro.pubsub.delivery import ACK, TERM, Fate, as_call_error, judge, nak, silent_end
from busmicro.pubsub.handlers import Subscriber
from busmicro.pubsub.intake import Intake
from busmicro.pubsub.reader import Reader
from busmicro.pubsub.workers import Workers
from busmicro.transport import Subscription

log = logging.getLogger("busmicro.events")

_GATHER: Final = 0.2
_BURY_AGAIN: Final = 30.0
"""Seconds after which an event is tried again whose dead letter could not be stored."""


_Raw: TypeAlias = tuple[bytes, bytes, bytes]
"""Subject, header block and payload of an event."""


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

    @property
    def waiting(self) -> int:
        """How many events are here and not begun with."""
        ...


def _guard(chain: Handler, timeout: float | None) -> Handler:
    """Give each event so many seconds."""
    if timeout is None:
        return chain

    async def guarded(call: Call) -> object:
        call.deadline = asyncio.get_running_loop().time() + timeout
        scope = asyncio.timeout_at(call.deadline)
        try:
            async with scope:
                return await chain(call)
        except TimeoutError as late:
            if not scope.expired():
                raise  # the handler's own
            raise DeadlineExceeded(f"not handled within {timeout:g} s") from late

    return guarded


class _Listening(ABC):
    """What both kinds of listener have: workers, lists, keys."""

    def __init__(self, subscriber: Subscriber, chain: Handler, bus: Bus, reader: Reader) -> None:
        options = subscriber.options
        self._bus = bus
        self._subscriber = subscriber
        self._figures = subscriber.figures
        self._chain = _guard(chain, options.timeout)
        self._read = reader.call
        self._reader = reader
        self._name = f"{subscriber.spec.endpoint} {options.group}".strip()
        self._batches = Batches(options.batch, options.batch_wait, self._put_list)
        self._workers: Workers[Call] = Workers(
            self._handle,
            self._handled,
            self._failed,
            concurrency=options.concurrency,
            name=self._name,
            key_of=self._key if options.key else None,
        )
        self._lists: Workers[list[Call]] = Workers(
            self._handle_list,
            self._handled_list,
            self._failed_list,
            concurrency=options.concurrency,
            name=self._name,
        )
        self._take = self._batches.add if subscriber.takes_list else self._workers.put

    @property
    def running(self) -> int:
        """How many events, or lists of them, are being handled."""
        return self._workers.running + self._lists.running

    @property
    def waiting(self) -> int:
        """How many events are here and not begun with."""
        lists = sum(map(len, self._lists.waiting))
        single = len(self._workers.waiting) + self._workers.behind
        return single + lists + len(self._batches)

    def _put_list(self, calls: list[Call]) -> None:
        self._lists.put(calls)

    def _key(self, call: Call) -> Hashable:
        key_of = self._subscriber.options.key
        try:
            message = call.message
        except InvalidArgument:
            return call  # it does not decode, so it stands in nobody's way
        key: Hashable = key_of(message) if key_of else None
        return key

    def _take_back(self) -> list[Call]:
        """Return everything that nobody has begun with."""
        lists = (call for calls in self._lists.take_back() for call in calls)
        return [*self._workers.take_back(), *lists, *self._batches.take_back()]

    def end_all(self) -> None:
        """End what runs, now."""
        self._workers.end_all()
        self._lists.end_all()

    async def _stop_workers(self, grace: float) -> int:
        ended = await asyncio.gather(self._workers.stop(grace), self._lists.stop(grace))
        return sum(ended)

    def _handle(self, call: Call) -> Awaitable[object]:
        """Handle one event, or a list of them."""
        enter_call(call)
        return self._chain(call)

    @abstractmethod
    def _handled(self, call: Call) -> None:
        """Deal with an event that was handled."""

    @abstractmethod
    async def _failed(self, call: Call, failure: BaseException) -> None:
        """Deal with an event whose handling failed; must not raise."""

    @abstractmethod
    async def _handle_list(self, calls: list[Call]) -> None:
        """Handle a list of events, and take those out of it that do not decode."""

    @abstractmethod
    def _handled_list(self, calls: list[Call]) -> None:
        """Deal with a list of events that was handled."""

    @abstractmethod
    async def _failed_list(self, calls: list[Call], failure: BaseException) -> None:
        """Deal with a list of events whose handling failed; must not raise."""

    def _count_failure(self, call: Call, failure: BaseException) -> CallError:
        told = as_call_error(call, failure)
        self._figures.failed += 1
        self._figures.last_error = str(told)
        return told


class CoreListener(_Listening):
    """Handles events that nobody keeps: at most once."""

    def __init__(self, subscriber: Subscriber, chain: Handler, bus: Bus, reader: Reader) -> None:
        super().__init__(subscriber, chain, bus, reader)
        self._most = subscriber.options.waiting
        # What waits is as it came: a call for each would have the garbage collector look at them.
        self._plain: Workers[_Raw] = Workers(
            self._handle_raw,
            self._handled_raw,
            self._failed_raw,
            concurrency=subscriber.options.concurrency,
            name=self._name,
        )
        self._waiting, self._put = self._plain.waiting, self._plain.put  # once an event each
        self._subscription: Subscription | None = None

    async def start(self) -> Subscription:
        """Listen; in force after a barrier."""
        topic, group = self._subscriber.topic, self._subscriber.options.group
        subject = f"{self._bus.subjects.prefix}{topic.pattern}"
        on_event = self._on_event
        if self._subscriber.takes_list:
            on_event = self._on_event_for_list
        elif self._subscriber.options.key is not None:
            on_event = self._on_event_with_key
        self._subscription = self._bus.transport.subscribe(subject, on_event, queue=group)
        return self._subscription

    def stop_listening(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            self._bus.transport.unsubscribe(self._subscription)

    async def stop(self, grace: float) -> int:
        """Handle what waits, too: nobody else has it."""
        if gathered := self._batches.take_back():
            self._put_list(gathered)
        return sum(await asyncio.gather(self._plain.stop(grace), self._stop_workers(grace)))

    @property
    def running(self) -> int:
        """How many events, or lists of them, are being handled."""
        return super().running + self._plain.running

    @property
    def waiting(self) -> int:
        """How many events are here and not begun with."""
        return super().waiting + len(self._plain.waiting)

    def end_all(self) -> None:
        """End what runs, now."""
        super().end_all()
        self._plain.end_all()

    def _on_event(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        if len(self._waiting) >= self._most:
            self._drop()
        else:
            self._put((subject, header, payload))

    def _on_event_with_key(
        self, subject: bytes, _reply: bytes, header: bytes, payload: bytes
    ) -> None:
        if len(self._workers.waiting) + self._workers.behind >= self._most:
            self._drop()
        else:
            self._workers.put(self._read(subject, b"", header, payload))

    def _on_event_for_list(
        self, subject: bytes, _reply: bytes, header: bytes, payload: bytes
    ) -> None:
        waiting = len(self._batches) + sum(map(len, self._lists.waiting))
        if waiting >= self._most:
            self._drop()
        else:
            self._batches.add(self._read(subject, b"", header, payload))

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

    def _handle_raw(self, raw: _Raw) -> Awaitable[object]:
        subject, header, payload = raw
        call = self._read(subject, b"", header, payload)
        enter_call(call)
        return self._chain(call)

    def _handled_raw(self, _raw: _Raw) -> None:
        self._figures.handled += 1

    async def _failed_raw(self, raw: _Raw, failure: BaseException) -> None:
        subject, header, payload = raw
        await self._failed(self._read(subject, b"", header, payload), failure)

    def _handled(self, _call: Call) -> None:
        self._figures.handled += 1

    async def _failed(self, call: Call, failure: BaseException) -> None:
        told = self._count_failure(call, failure)
        log.error("%s: an event is lost: %s", self._name, told)

    async def _handle_list(self, calls: list[Call]) -> None:
        many, wrong = self._reader.call_of_many(calls)
        for call, failure in wrong.items():
            calls.remove(call)
            await self._failed(call, failure)
        if calls:
            await self._handle(many)

    def _handled_list(self, calls: list[Call]) -> None:
        self._figures.handled += len(calls)

    async def _failed_list(self, calls: list[Call], failure: BaseException) -> None:
        for call in calls:
            await self._failed(call, failure)


class StreamListener(_Listening):
    """Handles events that a stream keeps: each at least once."""

    def __init__(
        self,
        subscriber: Subscriber,
        chain: Handler,
        bus: Bus,
        reader: Reader,
        intake: Intake,
        letters: DeadLetters,
    ) -> None:
        super().__init__(subscriber, chain, bus, reader)
        self._options = subscriber.options
        self._letters = letters
        self._intake = intake
        self._alone = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._first = first_attempt(intake.consumer.stream, intake.consumer.name)
        self._come_again = Batches(subscriber.options.waiting, _GATHER, self._put_in_order)
        in_order = subscriber.options.key is not None and not subscriber.takes_list
        intake.deliver_to(self._put_keyed if in_order else self._take)

    async def start(self) -> Subscription:
        """Make sure of stream, consumer and dead letters, and listen; in force after a barrier."""
        await self._letters.prepare()
        return await self._intake.start()

    def stop_listening(self) -> None:
        """Take no more."""
        self._intake.stop_pulling()

    async def stop(self, grace: float) -> int:
        """Give back what waits, finish what runs, give back what had to be ended."""
        self._stopping.set()
        waiting = [*self._take_back(), *self._come_again.take_back()]
        if self._options.key is None:
            self._intake.give_back(waiting)  # else all at the end, or it would overtake what runs
        ended = await self._stop_workers(grace)
        await self._intake.close()
        return ended

    # --- in order -------------------------------------------------------------------------------

    def _put_keyed(self, call: Call) -> None:
        """Have an event handled, unless others that come again may still have to go before it.

        While nobody is pinned the server turns its queue of redeliveries round; so what a dead node
        had held comes in any order.
        """
        if len(self._come_again) or not call.ack_bytes.startswith(self._first):
            self._come_again.add(call)
        else:
            self._workers.put(call)

    def _put_in_order(self, calls: list[Call]) -> None:
        for call in sorted(calls, key=lambda call: sequence_of(call.ack_bytes)):
            self._workers.put(call)

    # --- one event ------------------------------------------------------------------------------

    def _handle(self, call: Call) -> Awaitable[object]:
        ack = call.ack_bytes  # that of a first attempt, mostly
        if not ack.startswith(self._first) and attempt_of(ack) > self._options.max_deliver:
            return self._try_alone(call)
        enter_call(call)
        return self._chain(call)

    async def _try_alone(self, call: Call, seen: Call | None = None) -> object:
        """Try an event for the very last time that was delivered once more than allowed.

        It need not be to blame: it may only have been in the hands of a node that another event
        killed. So its dead letter is stored first, then it is tried, alone, and if that goes well
        the letter is taken back. Who finds the letter there already knows that this event has ended
        its node by itself.
        """
        attempts = attempt_of(call.ack_bytes) - 1
        over = silent_end(attempts)
        if self._options.max_deliver == 1:
            raise over  # whoever says 1 means that it must not run twice
        async with self._alone:
            letter = await self._letters.bury(
                call, over, consumer=self._intake.consumer.label, attempts=attempts
            )
            if letter.duplicate:
                raise over
            reply = await super()._handle(seen or call)
        await self._take_back_letter(letter.sequence)
        return reply

    async def _take_back_letter(self, number: int) -> None:
        try:
            await self._letters.drop(number)
        except CallError as failure:
            log.warning(
                "%s: dead letter %d was handled after all; drop it: %s", self._name, number, failure
            )

    def _handled(self, call: Call) -> None:
        self._figures.handled += 1
        self._intake.settle(call, ACK)

    async def _failed(self, call: Call, failure: BaseException) -> None:
        attempt = attempt_of(call.ack_bytes)
        pause = await self._judge(call, failure, attempt)
        while pause is not None and self._options.key is not None and await self._rest(pause):
            attempt += 1
            call = call.copy()
            call.tried_here += 1
            try:
                await super()._handle(call)
            except (Exception, SystemExit) as again:
                pause = await self._judge(call, again, attempt)
            else:
                self._handled(call)
                return
        if pause is not None:
            self._intake.settle(call, nak(pause))

    async def _rest(self, pause: float) -> bool:
        """Wait here, where those with the same key cannot overtake; False if the node stops."""
        try:
            async with asyncio.timeout(pause):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    async def _judge(self, call: Call, failure: BaseException, attempt: int) -> float | None:
        """Return the seconds until the next attempt, or bury the event and return None."""
        told = self._count_failure(call, failure)
        verdict = judge(call, told, attempt, self._options)
        if verdict.fate is Fate.DEAD:
            await self._bury(call, told, min(attempt, self._options.max_deliver))
            return None
        log.warning(
            "%s: attempt %d of %d failed, the next one in %g s: %s",
            self._name,
            attempt,
            self._options.max_deliver,
            verdict.pause,
            told,
        )
        return verdict.pause

    async def _bury(self, call: Call, failure: CallError, attempts: int) -> None:
        """Give an event up: its dead letter is stored first, then the stream may forget it."""
        label = self._intake.consumer.label
        try:
            await self._letters.bury(call, failure, consumer=label, attempts=attempts)
        except CallError as unburied:
            log.error("%s: a dead letter could not be stored: %s", self._name, unburied)  # noqa: TRY400
            self._intake.settle(call, nak(_BURY_AGAIN))
            return
        self._figures.dead += 1
        log.error("%s: an event went to the dead letters: %s", self._name, failure)
        self._intake.settle(call, TERM)

    # --- lists of events ------------------------------------------------------------------------

    async def _handle_list(self, calls: list[Call]) -> None:
        for call in tuple(calls):
            if attempt_of(call.ack_bytes) > self._options.max_deliver:
                calls.remove(call)
                await self._try_list_of_one(call)
        if not calls:
            return
        many, wrong = self._reader.call_of_many(calls)
        for call, failure in wrong.items():
            calls.remove(call)
            await self._failed(call, failure)
        if calls:
            await super()._handle(many)

    async def _try_list_of_one(self, call: Call) -> None:
        many, wrong = self._reader.call_of_many([call])
        if wrong:
            await self._failed(call, wrong[call])
            return
        try:
            await self._try_alone(call, many)
        except Exception as failure:
            await self._failed(call, failure)
        else:
            self._handled(call)

    def _handled_list(self, calls: list[Call]) -> None:
        for call in calls:
            self._handled(call)

    async def _failed_list(self, calls: list[Call], failure: BaseException) -> None:
        """Handle them one by one, so that one bad event does not take others with it."""
        if len(calls) == 1:
            calls[0].began = True
            await self._failed(calls[0], failure)
            return
        for call in calls:
            single = [call]
            try:
                await self._handle_list(single)
            except (Exception, SystemExit) as again:
                await self._failed_list(single, again)
            else:
                self._handled_list(single)
