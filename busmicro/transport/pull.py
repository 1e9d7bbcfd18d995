"""The continuous pull: events of one consumer, as fast as they are taken, for ever.

How it flows::

    refill() ── MSG.NEXT, batch=room ──► server
    server ── event ──► on_event             outstanding - 1
           ── 404, 408, 409 ──►              outstanding - what the request still had; ask again
           ── 100 heartbeat ──►              somebody is there
           ── nothing for two heartbeats ──► those requests are lost; ask again
           ── 503, consumer deleted ──►      on_gone: whoever owns the consumer finds out why
    pinned, each heartbeat ── MSG.NEXT for nothing ──► server, which goes on pinning us

Its owner says how many events it has room for, and calls `refill` when some have left.  More are
asked for when less than half of the room is on its way, so that one request carries many events.
Nothing ends it but `stop`: not a restarted server, a lost connection, a new leader or a deleted
consumer.

Source: NATS ADR-37 (simplified JetStream, `consume`), ADR-42 (pinned clients).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from busmicro.delivery import acks_of
from busmicro.errors import BusmicroError
from busmicro.headers import parse
from busmicro.transport.base import OnMessage, Subscription, Transport
from busmicro.transport.jetstream import API, status_of

log = logging.getLogger("busmicro.transport")

_EXPIRES: Final = 30.0
_HEARTBEAT: Final = 2.0
"""A leader that was killed says no good-bye: after two of these, its requests are made anew."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
_GIVE_WAY: Final = 3.0
"""A server that restarts pins whoever asks first.  That has to be who was pinned before and holds
events still: it is connected again within two seconds, and the others ask after that."""
_MOST_DIGITS: Final = 20
_PIN: Final = b"\r\nNats-Pin-Id:"


class Pull:
    """What one process takes from one consumer.

    Args:
        transport: The connection.
        inbox: The inbox below which events arrive.
        stream: The stream, as the server calls it.
        consumer: The consumer.
        on_event: Gets each event, in the read loop.
        on_gone: Hears, with the reason, that the consumer may not be there any more.
        room: How many more events the owner could take, those that were asked for not counted.
        pinned: The consumer's priority group, if one client at a time shall get its events.
    """

    def __init__(
        self,
        transport: Transport,
        inbox: str,
        stream: str,
        consumer: str,
        *,
        on_event: OnMessage,
        on_gone: Callable[[str], None],
        room: Callable[[], int],
        pinned: str = "",
    ) -> None:
        self.outstanding = 0
        """Events that were asked for and have not come."""
        self._transport = transport
        self._inboxes = f"{inbox}.pull"
        self._inbox = ""
        self._subject = f"{API}CONSUMER.MSG.NEXT.{stream}.{consumer}".encode()
        self._name = f"{stream}/{consumer}"
        self._is_ack = acks_of(stream, consumer).fullmatch
        self._on_event = on_event
        self._on_gone = on_gone
        self._room = room
        self._pinned = pinned
        self._pin = ""
        self._asks_from = 0.0
        self._subscription: Subscription | None = None
        self._heard = False
        self._missed = 0
        self._pause = _FIRST_PAUSE
        self._paused = False
        self._timers: set[asyncio.TimerHandle] = set()

    def start(self) -> Subscription:
        """Listen and ask for the first events; the subscription is in force after a barrier."""
        subscription = self._subscribe()
        self._transport.listen(self)
        self._later(_HEARTBEAT, self._check)
        self.refill()
        return subscription

    def _subscribe(self) -> Subscription:
        self._inbox = f"{self._inboxes}.{secrets.token_hex(8)}"  # whoever we call knows the rest
        self._subscription = self._transport.subscribe(self._inbox, self._on_message)
        return self._subscription

    def stop(self) -> None:
        """Take no more; what is on its way still comes until a barrier has passed."""
        if self._subscription is not None:
            self._transport.unsubscribe(self._subscription)
            self._subscription = None
        self._transport.unlisten(self)
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def refill(self) -> None:
        """Ask for as many events as there is room for, if that is worth a request."""
        room = self._room()
        if room >= 2 * self.outstanding and room > 0 and not self._paused:
            self._ask(room - self.outstanding)

    def _ask(self, batch: int) -> None:
        if self._subscription is None or not self._transport.connected:
            return
        if self._asks_from > asyncio.get_running_loop().time():
            return
        request = (
            f'{{"batch":{batch},"expires":{_EXPIRES * 1e9:.0f},'
            f'"idle_heartbeat":{_HEARTBEAT * 1e9:.0f}{self._who()}}}'
        )
        try:
            self._transport.publish(self._subject, request.encode(), self._inbox.encode())
        except BusmicroError as refused:
            log.warning("%s: no events could be asked for: %s", self._name, refused)
            self._try_later()
            return
        self.outstanding += batch

    def _who(self) -> str:
        """Say in a request for which priority group we ask, and that we are pinned if we are."""
        group = f',"group":"{self._pinned}"' if self._pinned else ""
        return f'{group},"id":"{self._pin}"' if self._pin else group

    # --- what comes -----------------------------------------------------------------------------

    def _on_message(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        self._heard = True
        if reply:
            if not self._is_ack(reply):  # no event: to settle it would be to publish for a stranger
                log.debug("%s: something that wants its word on %r", self._name, reply)
                return
            self.outstanding = max(0, self.outstanding - 1)  # or it was given up for lost
            if self._pinned and _PIN in header:
                self._pin = parse(header).get("Nats-Pin-Id", "")
            self._on_event(subject, reply, header, payload)
            return
        status = status_of(header)
        if status != 100:
            self._on_status(status, header)

    def _on_status(self, status: int, header: bytes) -> None:
        """Deal with the end of a request."""
        said = header.partition(b"\r\n")[0][13:].decode("utf-8", "replace")
        if status == 503 or (status == 409 and "deleted" in said.lower()):
            self.outstanding = 0
            self._try_later()
            self._on_gone(said or "no responders")
            return
        left = parse(header).get("Nats-Pending-Messages", "")
        plain = left.isascii() and left.isdigit() and len(left) <= _MOST_DIGITS
        self.outstanding -= int(left) if plain else self.outstanding
        self.outstanding = max(0, self.outstanding)
        if status == 423:  # somebody else is pinned now
            self._pin = ""
        if status in {404, 408, 423}:
            self._pause = _FIRST_PAUSE
            self.refill()
        else:  # 400 and most of 409: wrong at this moment, such as a leader that steps down
            log.debug("%s: %d %s", self._name, status, said)
            self._try_later()

    # --- what does not come ---------------------------------------------------------------------

    def _renew_pin(self) -> None:
        """Say that we are there: only requests tell the server, and slow handlers make none.

        No event fits this request, and its answer goes where nobody listens.
        """
        if not self._pin or self._subscription is None or not self._transport.connected:
            return
        request = f'{{"batch":1,"max_bytes":1,"no_wait":true{self._who()}}}'
        try:
            self._transport.publish(self._subject, request.encode(), f"{self._inbox}.pin".encode())
        except BusmicroError as refused:
            log.debug("%s: the pin could not be renewed: %s", self._name, refused)

    def _check(self) -> None:
        """Notice that nobody has been heard for two heartbeats."""
        self._missed = 0 if self._heard or not self.outstanding else self._missed + 1
        self._heard = False
        if self._missed >= 2:
            log.info("%s: no heartbeat, asking again", self._name)
            self._missed = self.outstanding = 0
        self._renew_pin()
        self.refill()
        self._later(_HEARTBEAT, self._check)

    def _try_later(self) -> None:
        if self._paused:
            return
        self._paused = True
        self._later(self._pause, self._try_now)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _try_now(self) -> None:
        self._paused = False
        self.refill()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        def act() -> None:
            self._timers.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(seconds, act)
        self._timers.add(timer)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Ask again, with another inbox: or the server would go on with the old requests, too."""
        if self._subscription is not None:
            self._transport.unsubscribe(self._subscription)
            self._subscribe()
        self.outstanding = 0
        self._pause = _FIRST_PAUSE
        if self._pinned and not self._pin:
            self._asks_from = asyncio.get_running_loop().time() + _GIVE_WAY
            self._later(_GIVE_WAY + 0.01, self.refill)
        self.refill()

    def on_disconnected(self) -> None:
        """Forget what was asked for."""
        self.outstanding = 0

    def on_publish_denied(self, subject: str) -> None:
        """Tell the owner that asking is forbidden."""
        if subject.casefold() == self._subject.decode().casefold():
            self.outstanding = 0
            self._try_later()
            self._on_gone(f"NATS does not permit publishing to {subject}")
