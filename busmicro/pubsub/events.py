"""Events as an iteration: ``async with client.subscribe(topic) as events: async for event in …``.

What a stream keeps is acknowledged when the next event is asked for, or when the block ends well:
then its body has done with it.  If the block ends with an error, the event at hand and everything
behind it is given back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from types import TracebackType
from typing import Generic, Self, TypeVar

from busmicro.bus import Bus
from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import BusmicroError, CallError, SetupError
from busmicro.pubsub.consumers import Consumer, ConsumerPlan
from busmicro.pubsub.deadletters import DeadLetters
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.delivery import ACK, NAK, TERM, nak
from busmicro.pubsub.handlers import Start, SubscribeOptions
from busmicro.pubsub.intake import Intake
from busmicro.pubsub.reader import Reader
from busmicro.pubsub.topic import Topic
from busmicro.transport import Subscription, require_allowed

log = logging.getLogger("busmicro.events")

T = TypeVar("T")

_WAITING = 1024
_LEAST = 64
_BURY_AGAIN = 30.0


class Events(Generic[T]):
    """The events of a topic, one after another; used once, in one task.

    Args:
        bus: The connection.
        topic: Whose events.
        declarations: The streams of this process.
        group: Who shares the events; empty for all of them.
        start: Where a topic with a stream begins; None for `first` with a group, `new` without.
        owner: Who subscribes.
        waiting: How many events may wait here.
    """

    def __init__(
        self,
        bus: Bus,
        topic: Topic[T],
        declarations: Declarations,
        *,
        group: str = "",
        start: Start | None = None,
        owner: str = "client",
        waiting: int = _WAITING,
    ) -> None:
        SubscribeOptions(group=group, waiting=waiting, start=start)  # refuses what cannot be meant
        if topic.stream is None and start not in {None, "new"}:
            raise SetupError(f"topic {topic.subject} has no stream: nothing is kept to start from")
        self._bus = bus
        self._topic = topic
        self._declarations = declarations
        self._group = group
        self._start = start
        self._owner = owner
        self._most = waiting
        spec = Spec(service=owner, endpoint=topic.subject, kind=Kind.EVENT, side=Side.HANDLER)
        self._reader = Reader(spec, topic)
        self._waiting: deque[Call] = deque()
        self._arrived = asyncio.Event()
        self._intake: Intake | None = None
        self._subscription: Subscription | None = None
        self._at_hand: Call | None = None
        self._call: Call | None = None
        self.dropped = 0
        """Events without a stream that came while too many waited."""

    @property
    def call(self) -> Call:
        """What there is to know of the event at hand: headers, subject, delivery.

        Raises:
            SetupError: No event has come yet.
        """
        if self._call is None:
            raise SetupError("there is no event at hand: ask inside 'async for'")
        return self._call

    # --- the block ------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._subscription is not None:
            raise SetupError("these events were entered before; subscribe again")
        self._subscription = await (self._listen() if self._topic.stream is None else self._pull())
        await self._bus.transport.barrier()
        require_allowed(self._subscription)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._settle(ACK if exc is None else NAK)
        if self._intake is not None:
            self._intake.stop_pulling()
        elif self._subscription is not None:
            self._bus.transport.unsubscribe(self._subscription)
        try:
            await self._bus.transport.barrier(timeout=2.0)
        except BusmicroError as failure:
            log.debug("leaving a subscription without a connection: %s", failure)
        self._waiting.clear()
        if self._intake is not None:
            await self._intake.close()

    async def _listen(self) -> Subscription:
        subject = f"{self._bus.subjects.prefix}{self._topic.pattern}"
        return self._bus.transport.subscribe(subject, self._on_event, queue=self._group)

    async def _pull(self) -> Subscription:
        plan = ConsumerPlan(
            topic=self._topic, group=self._group, owner=self._owner, start=self._start
        )
        consumer = Consumer(plan, self._declarations, self._bus.subjects)
        self._intake = Intake(self._bus, consumer, self._reader, least=_LEAST, most=self._most)
        self._intake.deliver_to(self._put)
        return await self._intake.start()

    def _on_event(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        if len(self._waiting) < self._most:
            self._put(self._reader.call(subject, b"", header, payload))
            return
        self.dropped += 1
        if self.dropped & (self.dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th, …
            log.warning(
                "%s: %d events wait already, so this one is dropped (%d so far); take them more "
                "quickly, or give the topic a stream",
                self._topic.subject,
                self._most,
                self.dropped,
            )

    def _put(self, call: Call) -> None:
        self._waiting.append(call)
        self._arrived.set()

    def _settle(self, word: bytes) -> None:
        """Say what became of the event at hand."""
        call, self._at_hand = self._at_hand, None
        if call is not None and self._intake is not None:
            self._intake.settle(call, word)

    def ack(self) -> None:
        """Acknowledge the event at hand now, before the next one is asked for."""
        self._settle(ACK)

    # --- the iteration --------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        if self._subscription is None:
            raise SetupError("enter the events first: async with client.subscribe(…) as events")
        self._settle(ACK)
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            call = self._waiting.popleft()
            try:
                message = call.message
            except CallError as failure:
                await self._bury(call, failure)
                continue
            self._at_hand = self._call = call
            return message  # type: ignore[return-value]

    async def _bury(self, call: Call, failure: CallError) -> None:
        """Deal with an event that does not decode, and go on."""
        log.error("%s: an event does not decode: %s", self._topic.subject, failure)
        if self._intake is None:
            return
        if not self._group:  # an onlooker's trouble is nobody else's
            self._intake.settle(call, ACK)
            return
        replicas = 1 if self._topic.stream is None else self._topic.stream.replicas
        letters = DeadLetters(self._bus, self._declarations, replicas=replicas)
        label = self._intake.consumer.label
        try:
            await letters.bury(call, failure, consumer=label, attempts=1)
        except CallError as unburied:
            log.error("%s: a dead letter could not be stored: %s", self._topic.subject, unburied)  # noqa: TRY400
            self._intake.settle(call, nak(_BURY_AGAIN))
        else:
            self._intake.settle(call, TERM)

    async def collect(
        self, *, most: int | None = None, timeout: float = 1.0, stall: float | None = None
    ) -> list[T]:
        """Gather what comes, until there is enough or the time is up.

        Args:
            most: How many are enough; None for no limit.
            timeout: Seconds in all.
            stall: Seconds without a further event after which there is taken to be no more.

        Returns:
            The events, in order; each is acknowledged.

        Source: NATS ADR-47.
        """
        found: list[T] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while most is None or len(found) < most:
            quiet = end if stall is None or not found else min(end, loop.time() + stall)
            try:
                async with asyncio.timeout_at(quiet):
                    found.append(await self.__anext__())
            except TimeoutError:
                break
        self._settle(ACK)
        return found
