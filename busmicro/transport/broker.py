"""The broker: a NATS server's part in core messaging, inside one process and one event loop.

How a message goes::

    publish ──► one list per connection ──► end of the turn of the loop: who listens? ──┐
                                                                                        │
    on_message ◄── at once, without a `Network` ◄───────────────────────────────────────┤
    on_message ◄── at its time, in the order of arrival ◄── `Network.deliver` ◄─────────┘

Subscribing, unsubscribing and barriers go through the same list, so their order among messages
is that of the calls.  A member of a queue group is chosen when the message leaves the publisher;
what is on its way to a connection that ends is lost, as it is with a socket.

There is no JetStream here: whoever asks for it learns that nobody listens.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

from busmicro.errors import Disconnected, PayloadTooLarge
from busmicro.headers import NO_RESPONDERS
from busmicro.transport.base import Subscription
from busmicro.transport.fastpath import DEFAULT_MAX_PAYLOAD_BYTES, overfull
from busmicro.transport.interest import Interest

log = logging.getLogger("busmicro.transport")

HELD_OVERHEAD_BYTES: Final = 200
"""What Python needs to remember a message that waits, however short it is."""

_HIGH_WATER_BYTES: Final = 1024 * 1024
"""More than this on its way means that the publisher should wait."""
_NOBODY: Final = NO_RESPONDERS + b"\r\n\r\n"

Message: TypeAlias = tuple[bytes, bytes, bytes, bytes]
"""Subject, payload, reply subject and header block."""


class Overtaking(float):
    """A delay in seconds that does not wait for the messages ahead of this one."""

    __slots__ = ()


class Network(Protocol):
    """Decides how long messages travel, which get lost and which arrive twice."""

    def deliver(self, source: str, target: str, subject: str, size_bytes: int) -> Sequence[float]:
        """Say when the copies of a message arrive; called once for each receiver.

        Messages from one connection to one subscription arrive in the order in which they left: a
        short delay after a long one is made longer. A copy whose delay is an `Overtaking` arrives
        at its own time instead, and later ones do not wait for it. `NATS/1.0 503` travels from the
        requester to itself.

        Args:
            source: The name of the connection that published it.
            target: The name of the connection that gets it.
            subject: Where it was published.
            size_bytes: What it weighs, headers counted.

        Returns:
            Seconds until each copy arrives: `[0.0]` is at once, `[]` never, two numbers are two
            copies.
        """
        ...


class Connection:
    """One connection, at the broker's end; a new one is made for every attempt to connect."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        on_lost: Callable[[Connection], None],
        max_waiting_bytes: int,
    ) -> None:
        self.name = name
        self.open = True
        self.quiet_at = 0.0
        """When the last message on its way here will have arrived."""
        self.travelling_bytes = 0
        """What has left from here and has not arrived."""
        self._broker = broker
        self._on_lost = on_lost
        self._max_waiting_bytes = max_waiting_bytes
        self._loop = asyncio.get_running_loop()
        self._out: list[Message | Callable[[], None]] = []
        self._out_bytes = 0
        self._members: dict[bytes, _Member] = {}
        self._pongs: dict[asyncio.Future[None], None] = {}
        self._room = asyncio.Event()

    # --- sending --------------------------------------------------------------------------------

    def publish(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Queue one message for the end of this turn of the loop; see `Transport.publish`."""
        size = len(payload) + len(header)
        if size > self._broker.max_payload_bytes:
            raise PayloadTooLarge(size, self._broker.max_payload_bytes)
        if self._out_bytes + self.travelling_bytes > self._max_waiting_bytes:
            raise overfull(self._max_waiting_bytes)
        self._out_bytes += size + HELD_OVERHEAD_BYTES
        self._put((subject, payload, reply, header))

    def subscribe(self, subscription: Subscription) -> None:
        """Queue a subscription."""
        self._put(lambda: self._join(subscription))

    def unsubscribe(self, subscription: Subscription) -> None:
        """Queue the end of a subscription; what is on its way is still delivered."""
        self._put(lambda: self._leave(subscription))

    def ping(self) -> asyncio.Future[None]:
        """Return what ends when all that came before is dealt with, and all sent here is here."""
        pong: asyncio.Future[None] = self._loop.create_future()
        if not self.open:
            pong.set_exception(Disconnected("the connection is down", not_run=True))
            return pong
        self._pongs[pong] = None
        pong.add_done_callback(lambda done: self._pongs.pop(done, None))
        self._put(lambda: self._broker.answer(self, lambda: _set(pong)))
        return pong

    def _put(self, what: Message | Callable[[], None]) -> None:
        if not self._out:
            self._loop.call_soon(self._end_turn)
        self._out.append(what)

    def _end_turn(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        for what in out:
            if not self.open:
                break  # lost, and what had not left with it
            if isinstance(what, tuple):
                self._broker.route(self, what)
            else:
                what()
        self._room.set()

    def _join(self, subscription: Subscription) -> None:
        member = self._members[subscription.sid] = _Member(self, subscription)
        self._broker.interest.add(subscription.subject.encode(), subscription.queue, member)

    def _leave(self, subscription: Subscription) -> None:
        member = self._members.pop(subscription.sid, None)
        if member is not None:
            subject = subscription.subject.encode()
            self._broker.interest.remove(subject, subscription.queue, member)

    @property
    def writable(self) -> bool:
        """Is less than the high-water mark on its way?"""
        return self._out_bytes + self.travelling_bytes <= _HIGH_WATER_BYTES or not self.open

    async def drained(self) -> None:
        """Return when enough has arrived, or the connection is gone."""
        while not self.writable:
            self._room.clear()
            await self._room.wait()

    def arrived(self, size_bytes: int) -> None:
        """Note that something has arrived that left from here."""
        self.travelling_bytes -= size_bytes
        self._room.set()

    # --- its end --------------------------------------------------------------------------------

    def lose(self) -> None:
        """End as if the network had failed, and tell whoever holds the other end."""
        if self.open:
            self.end()
            self._loop.call_soon(self._on_lost, self)

    def end(self) -> None:
        """End; what had not left or was on its way here is lost, who waits for a pong is told."""
        self.open = False
        for member in tuple(self._members.values()):
            self._leave(member.subscription)
        for pong in tuple(self._pongs):
            if not pong.done():
                pong.set_exception(Disconnected("the connection dropped", not_run=False))
                pong.exception()  # taken note of: nobody need be waiting any more
        self._room.set()
        self._broker.forget(self)


def _set(pong: asyncio.Future[None]) -> None:
    if not pong.done():
        pong.set_result(None)


class _Member:
    """A subscription, and when the last message from each connection arrives at it."""

    __slots__ = ("connection", "last_at", "subscription")

    def __init__(self, connection: Connection, subscription: Subscription) -> None:
        self.connection = connection
        self.subscription = subscription
        self.last_at: dict[Connection, float] = {}

    def take(self, message: Message) -> None:
        """Deliver; what the callback raises is logged."""
        if not self.connection.open:
            return
        subject, payload, reply, header = message
        try:
            self.subscription.on_message(subject, reply, header, payload)
        except (Exception, asyncio.CancelledError):
            log.exception("the callback of %r failed", self.subscription)


class MemoryBroker:
    """Passes messages between the connections of one process, as a NATS server would.

    Args:
        name: What comes after `memory://`. Clients find the one that `named` returns; one made
            directly is known to nobody.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rng = random.Random()  # noqa: S311 - spreads load, hides nothing
        """Chooses the member of a queue group, and spreads attempts to come back."""
        self.network: Network | None = None
        """How messages travel; None for at once."""
        self.max_payload_bytes = DEFAULT_MAX_PAYLOAD_BYTES
        """What one message may weigh, headers counted."""
        self.interest: Interest[_Member] = Interest()
        """Who listens."""
        self._connections: dict[Connection, None] = {}
        self._refused: set[str | None] = set()
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._travelling: list[tuple[float, int, Callable[[], None]]] = []
        self._armed: asyncio.TimerHandle | None = None
        self._armed_for = float("inf")

    @staticmethod
    def named(name: str) -> MemoryBroker:
        """Return the broker of this name and the running loop; it is made if there is none.

        It lives as long as somebody is connected, or holds what this returns.
        """
        brokers = _brokers.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        found = brokers.get(name)
        if found is None:
            found = brokers[name] = MemoryBroker(name)
        return found

    # --- who is connected -----------------------------------------------------------------------

    @property
    def connections(self) -> list[str]:
        """The names of who is connected, the longest connected first."""
        return [connection.name for connection in self._connections]

    def stop(self, connection: str | None = None) -> None:
        """Cut everybody, or the connections of that name, and take none of them until `start`."""
        self._refused.add(connection)
        for each in tuple(self._connections):
            if connection in {None, each.name}:
                each.lose()

    def start(self, connection: str | None = None) -> None:
        """Take everybody again, or the connections of that name."""
        if connection is None:
            self._refused.clear()
        self._refused.discard(connection)

    def new_name(self) -> str:
        """Make up a name for a connection that has none."""
        return f"connection-{next(self._numbers)}"

    def admit(
        self, name: str, on_lost: Callable[[Connection], None], *, max_waiting_bytes: int
    ) -> Connection:
        """Take a connection.

        Args:
            name: Shown to the `Network`.
            on_lost: Called once, in the turn after a loss.
            max_waiting_bytes: What may wait to arrive before `publish` refuses.

        Raises:
            Disconnected: The broker is stopped.
        """
        if None in self._refused or name in self._refused:
            raise Disconnected(
                f"cannot reach memory://{self.name}: its broker is stopped", not_run=True
            )
        connection = Connection(self, name, on_lost, max_waiting_bytes)
        self._connections[connection] = None
        return connection

    def forget(self, connection: Connection) -> None:
        """Drop a connection that has ended."""
        self._connections.pop(connection, None)
        if not self._connections:  # so nothing can arrive any more
            self._travelling.clear()
            self._arm()

    # --- messages -------------------------------------------------------------------------------

    def route(self, source: Connection, message: Message) -> None:
        """Send a message to whoever listens; if nobody does, tell who waits for a reply."""
        listening = self.interest.match(message[0])
        for queue, members in listening.items():
            for member in (self.rng.choice(members),) if queue else tuple(members):
                self._send(source, member, message)
        if not listening and message[2]:
            answer = (message[2], b"", b"", _NOBODY)
            own = self.interest.match(message[2]).get("", ())
            for member in [member for member in own if member.connection is source][:1]:
                self._send(source, member, answer)

    def _send(self, source: Connection, member: _Member, message: Message) -> None:
        if self.network is None and not self._travelling:
            member.take(message)
            return
        delays: Sequence[float] = (0.0,)
        if self.network is not None:
            size = len(message[1]) + len(message[3])
            target, subject = member.connection.name, message[0].decode()
            delays = self.network.deliver(source.name, target, subject, size)
        for delay in delays:
            self._travel(source, member, message, delay)

    def _travel(self, source: Connection, member: _Member, message: Message, delay: float) -> None:
        at, last_at = self._loop.time() + delay, member.last_at
        if not isinstance(delay, Overtaking):
            at = last_at[source] = max(at, last_at.get(source, at))
        size = len(message[1]) + len(message[3]) + HELD_OVERHEAD_BYTES
        source.travelling_bytes += size
        member.connection.quiet_at = max(member.connection.quiet_at, at)

        def arrive() -> None:
            source.arrived(size)
            if last_at.get(source) == at:
                del last_at[source]
            member.take(message)

        self._at(at, arrive)

    def answer(self, connection: Connection, pong: Callable[[], None]) -> None:
        """Call back when all that is on its way to a connection has arrived."""
        if self._travelling:
            self._at(max(self._loop.time(), connection.quiet_at), pong)
        else:
            pong()

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._travelling, (when, next(self._numbers), what))
        self._arm()

    def _arm(self) -> None:
        """Have one timer of the loop set, for the earliest arrival."""
        earliest = self._travelling[0][0] if self._travelling else float("inf")
        if earliest != self._armed_for:
            if self._armed is not None:
                self._armed.cancel()
            self._armed_for = earliest
            self._armed = None
            if self._travelling:
                self._armed = self._loop.call_at(earliest, self._arrivals)

    def _arrivals(self) -> None:
        """Deliver what is due, in order; a loop may be early by the grain of its clock."""
        until = max(self._loop.time(), self._armed_for)
        self._armed, self._armed_for = None, float("inf")
        while self._travelling and self._travelling[0][0] <= until:
            heapq.heappop(self._travelling)[2]()
        self._arm()


_brokers: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[str, MemoryBroker]]
_brokers = WeakKeyDictionary()
