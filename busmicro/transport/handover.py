"""Two connections at once, for as long as it takes to move from a server that leaves to another.

Both listen to everything for a while, because the other servers of a cluster take a moment to learn
where to send what.  So a message may come by either connection or by both, and is delivered once::

    old ──► delivered at once, and counted
    new ──► held; when the old one is empty, what it has brought is left out, the rest is delivered
            and from then on delivered at once, but for copies of what the old one has brought

So the order stays, nothing is lost and nothing comes twice.  A message for a queue group comes by
one connection only, and is delivered at once: for a moment this process is two members of it.

Messages are told apart by all their bytes.  If two are alike and the new connection missed the
first, the second is taken for its copy; what has a reply subject, a number or an id is never alike.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeAlias

from busmicro.transport.base import OnMessage, Subscription
from busmicro.transport.fastpath import FastPath, sub_command

log = logging.getLogger("busmicro.transport")

_MOST_HELD: Final = 10_000
"""More than this, and the old connection is too far behind to be waited for."""

_Held: TypeAlias = tuple[Subscription, bytes, bytes, bytes, bytes]
_ByWay: TypeAlias = Callable[[Subscription], OnMessage]


class _Counts(enum.Enum):
    """Whose messages are delivered."""

    BOTH = enum.auto()
    OLD = enum.auto()
    NEW = enum.auto()


class Handover:
    """The old connection and the new one, from `begin` over `leave_old` and `end` to `settle`.

    Args:
        old: Delivers what it brings.
        new: Has what it brings held back.
        subscriptions: What this process listens to; changes meanwhile.
    """

    def __init__(
        self, old: FastPath, new: FastPath, subscriptions: dict[bytes, Subscription]
    ) -> None:
        self.old, self.new = old, new
        self._live = subscriptions
        self._old_ears: dict[bytes, Subscription] = {}
        self._new_ears: dict[bytes, Subscription] = {}
        self._brought: Counter[int] = Counter()
        self._held: list[_Held] = []
        self._counts = _Counts.BOTH
        self._left_old = False
        """Is nothing listened to any more on the old connection?"""
        self.is_over = False
        """Is the old connection of no more use?"""

    def begin(self, leaving: set[bytes]) -> None:
        """Listen on both connections; to what is being left only on the old one."""
        for subscription in self._live.values():
            self._take(subscription)
        self.old.deliver_to(self._old_ears)
        self.new.deliver_to(self._new_ears)
        wanted = (s for s in self._live.values() if s.sid not in leaving)
        self.new.write(b"".join(map(sub_command, wanted)))

    def subscribe(self, subscription: Subscription) -> None:
        """Listen to one more subject, on both as long as the old one has not been left."""
        self._take(subscription)
        self.write(sub_command(subscription))

    def write(self, command: bytes) -> None:
        """Tell both servers, the old one until it has been left."""
        if not self._left_old:
            self.old.write(command)
        self.new.write(command)

    async def barrier(self) -> None:
        """Return when both servers have dealt with everything, as long as both matter.

        Raises:
            Disconnected: The connection that counts dropped; the loss of the other one is no loss.
        """
        paths = [self.new] if self.is_over else [self.old, self.new]
        found = await asyncio.gather(*(path.ping() for path in paths), return_exceptions=True)
        failure = found[-1] if self.is_over else found[0]
        if failure is not None:
            raise failure

    def leave_old(self) -> None:
        """Listen to nothing any more on the old connection; over when it has answered a ping."""
        self._left_old = True
        self.old.write(b"".join(b"UNSUB %b\r\n" % sid for sid in self._old_ears))

    def end(self) -> None:
        """Deliver what only the new connection has brought, and from now on what it brings."""
        self.is_over = True
        self._counts = _Counts.NEW
        self.old.deliver_to({})
        self._release()

    def settle(self) -> None:
        """Look for copies no longer: those that were late have come."""
        self.new.deliver_to(self._live)

    def give_up(self) -> None:
        """Go on with the old connection alone."""
        self._counts = _Counts.OLD
        self._held.clear()
        self.new.deliver_to({})
        self.old.deliver_to(self._live)

    def _take(self, subscription: Subscription) -> None:
        by_old: _ByWay = self._directly if subscription.queue else self._by_old
        by_new: _ByWay = self._directly if subscription.queue else self._by_new
        sid, subject, queue = subscription.sid, subscription.subject, subscription.queue
        self._old_ears[sid] = Subscription(sid, subject, queue, by_old(subscription))
        self._new_ears[sid] = Subscription(sid, subject, queue, by_new(subscription))

    def _directly(self, subscription: Subscription) -> OnMessage:
        def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            if subscription.sid in self._live:
                subscription.on_message(subject, reply, header, payload)

        return on_message

    def _by_old(self, subscription: Subscription) -> OnMessage:
        deliver = self._directly(subscription)

        def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            if self._counts is not _Counts.NEW:
                self._brought[hash((subscription.sid, subject, reply, header, payload))] += 1
                deliver(subject, reply, header, payload)

        return on_message

    def _by_new(self, subscription: Subscription) -> OnMessage:
        deliver = self._directly(subscription)

        def on_message(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
            held = (subscription, subject, reply, header, payload)
            if self._counts is _Counts.NEW:
                if not self._was_brought(held):
                    deliver(subject, reply, header, payload)
            elif self._counts is _Counts.BOTH:
                self._held.append(held)
                if len(self._held) > _MOST_HELD:
                    self._shorten()

        return on_message

    def _shorten(self) -> None:
        """Let go of what has come by both; if that does not help, the old one counts no more."""
        self._held = [held for held in self._held if not self._was_brought(held)]
        if len(self._held) > _MOST_HELD // 2:
            self._counts = _Counts.NEW
            self._release()

    def _was_brought(self, held: _Held) -> bool:
        key = hash((held[0].sid, *held[1:]))
        if self._brought[key] > 0:
            self._brought[key] -= 1
            return True
        return False

    def _release(self) -> None:
        held, self._held = self._held, []
        for message in held:
            if not self._was_brought(message):
                try:
                    self._directly(message[0])(*message[1:])
                except (Exception, asyncio.CancelledError):
                    log.exception("the callback of %r failed", message[0])
