"""The subscriptions of one service while it runs: started together, stopped together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from busmicro.bus import Bus
from busmicro.call import Wrapper, compose
from busmicro.errors import BusmicroError
from busmicro.pubsub.consumers import Consumer, ConsumerPlan
from busmicro.pubsub.deadletters import DeadLetters
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.handlers import Subscriber, Subscribers
from busmicro.pubsub.intake import Intake
from busmicro.pubsub.listeners import CoreListener, Listener, StreamListener
from busmicro.pubsub.reader import Reader
from busmicro.transport import require_allowed
from busmicro.wrappers import Recover

log = logging.getLogger("busmicro.events")


class Subscriptions:
    """What listens for one service."""

    def __init__(
        self, service: str, subscribers: Subscribers, bus: Bus, declarations: Declarations
    ) -> None:
        self._service = service
        self._subscribers = subscribers
        self._bus = bus
        self._declarations = declarations
        streams = [subscriber.topic.stream for subscriber in subscribers]
        most = max((stream.replicas for stream in streams if stream is not None), default=1)
        self._letters = DeadLetters(bus, declarations, replicas=most)
        self._listeners: list[Listener] = []

    async def start(self, wrappers: Sequence[Wrapper]) -> None:
        """Give each handler its own subscription; when this returns, events arrive.

        Raises:
            StreamConflict: A stream or consumer exists with other settings.
            NoJetStream: A topic has a stream, and the server keeps none.
            PermissionDenied: A subject may not be subscribed to; the text names it.
        """
        if not len(self._subscribers):
            return
        started = []
        for subscriber in self._subscribers:
            listener = self._listener(subscriber, wrappers)
            self._listeners.append(listener)
            started.append(await listener.start())
        await self._bus.transport.barrier()
        require_allowed(*started)

    def _listener(self, subscriber: Subscriber, wrappers: Sequence[Wrapper]) -> Listener:
        # Without wrappers nobody else sees what a handler raises, and its listener recovers.
        around = [*wrappers, Recover()] if wrappers else []
        chain = compose(around, subscriber.invoke)
        subscriber.words_before = self._bus.subjects.prefix.count(".")
        reader = Reader(subscriber.spec, subscriber.topic)
        if subscriber.topic.stream is None:
            return CoreListener(subscriber, chain, self._bus, reader)
        options = subscriber.options
        plan = ConsumerPlan(
            topic=subscriber.topic,
            group=options.group,
            owner=self._service,
            ack_wait=options.ack_wait,
            start=options.start,
            one_at_a_time=options.key is not None,
        )
        consumer = Consumer(plan, self._declarations, self._bus.subjects)
        batch = options.batch if subscriber.takes_list else 1
        most = max(options.waiting, batch)
        # Who takes over needs room for all that another held, or it could not sort that.
        least = most if plan.one_at_a_time else 2 * options.concurrency * batch
        intake = Intake(self._bus, consumer, reader, least=least, most=most)
        return StreamListener(subscriber, chain, self._bus, reader, intake, self._letters)

    @property
    def running(self) -> int:
        """How many events are being handled now."""
        return sum(listener.running for listener in self._listeners)

    @property
    def waiting(self) -> int:
        """How many events are here and not begun with."""
        return sum(listener.waiting for listener in self._listeners)

    def end_all(self) -> None:
        """End every handler that runs, now; a stream gives its events to somebody else."""
        for listener in self._listeners:
            listener.end_all()

    async def stop(self, grace: float) -> int:
        """Take no more, give back what waits, finish what runs, then end the rest.

        Args:
            grace: Seconds that running handlers get.

        Returns:
            How many had to be ended; a stream gives their events to somebody else.
        """
        if not self._listeners:
            return 0
        for listener in self._listeners:
            listener.stop_listening()
        try:
            await self._bus.transport.barrier(timeout=2.0)
        except BusmicroError as failure:
            log.debug("stopping without a connection: %s", failure)
        ended = await asyncio.gather(*(listener.stop(grace) for listener in self._listeners))
        self._listeners.clear()
        if sum(ended):
            log.warning("%d events were still being handled after %g s", sum(ended), grace)
        return sum(ended)
