"""The intake of one consumer: events pulled, held while they are here, settled one by one.

Every event that is here, waiting or running, is held: each third of `ack_wait` the server is told
that somebody works on it, and does not give it to another node.  A node that is frozen or dead
says nothing, and its events go elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from busmicro.bus import Bus
from busmicro.call import Call
from busmicro.delivery import sequence_of
from busmicro.errors import BusmicroError, NoJetStream, StreamMissing
from busmicro.pubsub.consumers import Consumer
from busmicro.pubsub.delivery import IN_PROGRESS, NAK
from busmicro.pubsub.reader import Reader
from busmicro.pubsub.window import Window
from busmicro.tasks import Tasks
from busmicro.transport import Pull, Subscription

log = logging.getLogger("busmicro.events")

_SAY_EVERY: Final = 10.0
_LOOK_EVERY: Final = 5.0
"""Seconds between looks at what all nodes have settled, for the day the consumer is deleted."""


class Intake:
    """The events that one process takes from one consumer.

    Args:
        bus: The connection.
        consumer: Whose events.
        reader: Makes calls of them.
        least: How many it holds at least, so that no worker has to wait.
        most: How many it may hold.
    """

    def __init__(
        self,
        bus: Bus,
        consumer: Consumer,
        reader: Reader,
        *,
        least: int,
        most: int,
    ) -> None:
        self.consumer = consumer
        self._bus = bus
        self._read = reader.call
        self._on_arrival: Callable[[Call], None] = self._refuse
        self._window = Window(least, most)
        self._held: dict[bytes, Call] = {}
        self._latest: Call | None = None
        self._tasks = Tasks()
        self._repairing = False
        self._said = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._touching: asyncio.TimerHandle | None = None
        self._pull: Pull | None = None

    def __len__(self) -> int:
        return len(self._held)

    def deliver_to(self, on_arrival: Callable[[Call], None]) -> None:
        """Hand each event to this, in the read loop; it has to be settled some time."""
        self._on_arrival = on_arrival

    def _refuse(self, call: Call) -> None:
        self.settle(call, NAK)

    async def start(self) -> Subscription:
        """Make sure of the consumer and ask for events; in force after a barrier.

        Raises:
            StreamConflict, StreamMissing, NoJetStream, CallError: As `Consumer.ensure`.
        """
        await self.consumer.ensure()
        self._pull = Pull(
            self._bus.transport,
            self._bus.replies.inbox,
            self.consumer.stream,
            self.consumer.name,
            on_event=self._on_event,
            on_gone=self._on_gone,
            room=self._room,
            pinned=self.consumer.pinned,
        )
        self._touch_later()
        if self.consumer.plan.group:
            self._tasks.spawn(self._look_now_and_then(), name=f"look at {self.consumer.name}")
        self._bus.transport.listen(self)
        return self._pull.start()

    def stop_pulling(self) -> None:
        """Ask for no more; what is on its way still comes until a barrier has passed."""
        self._bus.transport.unlisten(self)
        if self._pull is not None:
            self._pull.stop()

    async def close(self) -> None:
        """Give back what is still held, and stop saying that it is in hand."""
        self.give_back(sorted(self._held.values(), key=_sequence))  # they come again in this order
        if self._touching is not None:
            self._touching.cancel()
        await self._tasks.cancel()
        try:
            if not self.consumer.plan.group:
                await self.consumer.delete()
            elif self.consumer.pinned:
                await self.consumer.unpin()
        except BusmicroError as failure:  # the server forgets it by itself, only later
            log.debug("consumer %s: %s", self.consumer.name, failure)

    # --- events ---------------------------------------------------------------------------------

    def _room(self) -> int:
        return self._window.size - len(self._held)

    def _on_event(self, subject: bytes, ack: bytes, header: bytes, payload: bytes) -> None:
        call = self._read(subject, ack, header, payload)
        self._held[ack] = self._latest = call
        self._on_arrival(call)

    def settle(self, call: Call, word: bytes) -> None:
        """Tell the server what became of an event, and ask for more if there is room."""
        if self._held.pop(call.ack_bytes, None) is None:
            return
        self._say(call, word)
        window, pull = self._window, self._pull
        window.left -= 1
        if window.left <= 0:
            window.turned(self._loop.time())
        if pull is not None and 2 * pull.outstanding <= window.size - len(self._held):
            pull.refill()

    def give_back(self, calls: Iterable[Call]) -> None:
        """Have events delivered to somebody else, at once."""
        for call in calls:
            self.settle(call, NAK)

    def _say(self, call: Call, word: bytes) -> None:
        try:
            self._bus.transport.publish(call.ack_bytes, word)
        except BusmicroError as refused:  # it comes again, after ack_wait
            log.warning("consumer %s could not be told %r: %s", self.consumer.name, word, refused)

    def _touch_later(self) -> None:
        every = self.consumer.plan.ack_wait / 3
        self._touching = self._loop.call_later(every, self._touch)

    def _touch(self) -> None:
        """Say of everything that is here that somebody works on it."""
        for call in self._held.values():
            self._say(call, IN_PROGRESS)
        self._touch_later()

    # --- a consumer that is gone ----------------------------------------------------------------

    def _on_gone(self, reason: str) -> None:
        if not self._repairing:
            self._repairing = True
            self._tasks.spawn(self._repair(reason), name=f"repair {self.consumer.name}")

    async def _repair(self, reason: str) -> None:
        """Make the consumer again if it is not there, and go on where it was."""
        consumer = self.consumer
        streams = consumer.streams
        try:
            if await consumer.ensure(resume_at=self._position()):
                log.warning("consumer %s was gone (%s), made again", consumer.name, reason)
        except BusmicroError as failure:
            self._complain(failure)
        finally:
            self._repairing = False
            self._compare(streams)

    def _compare(self, streams: int) -> None:
        """Let go of what is here if it came from another stream: its numbers mean other events."""
        if self.consumer.streams != streams:
            self._held.clear()
            self._latest = None

    def _complain(self, failure: BusmicroError) -> None:
        lasting = isinstance(failure, NoJetStream | StreamMissing)
        if (lasting or self._said > 0) and self._loop.time() - self._said < _SAY_EVERY:
            return
        self._said = self._loop.time()
        log.warning("no events for %s at the moment: %s", self.consumer.name, failure)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """See whether the server still has what it had: it may have lost power."""
        if self._latest is not None:
            self._tasks.spawn(self._see_end(_sequence(self._latest)), name="see the stream's end")

    async def _see_end(self, seen: int) -> None:
        streams = self.consumer.streams
        try:
            await self.consumer.see_end(seen)
        except BusmicroError as failure:
            log.debug("consumer %s: %s", self.consumer.name, failure)
        self._compare(streams)

    def on_disconnected(self) -> None:
        """Wait: what is here stays here."""

    def on_publish_denied(self, subject: str) -> None:
        """Leave it to the pull, which asked."""

    def _position(self) -> int | None:
        """Return the number of the first event that may not have been handled."""
        if self._latest is None:
            return None
        held = [_sequence(call) for call in self._held.values()]
        own = min([*held, _sequence(self._latest) + 1])
        # Other nodes may be behind; what they have settled since the last look comes again.
        return min(own, self.consumer.floor + 1) if self.consumer.plan.group else own

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                await self.consumer.look()
            except BusmicroError as failure:
                log.debug("consumer %s: %s", self.consumer.name, failure)


def _sequence(call: Call) -> int:
    return sequence_of(call.ack_bytes)
