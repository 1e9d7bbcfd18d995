"""The promise: bytes to a subject, bytes from a subject, whatever happens to the connection.

Every implementation promises:
- lives for ever: after any loss it connects again, with jittered backoff, and every
  subscription is restored;
- after `subscribe` and `await barrier()` the subscription is known to the server;
- after `unsubscribe` and `await barrier()` every message that was routed here has been delivered;
- messages of one publisher to one subject arrive in order;
- a callback that raises is logged and hurts nobody else;
- what is too large, headers counted, is refused before the wire and the connection lives on;
- a subject that may not be used is told to whoever uses it, at once;
- what waits to be sent is bounded; beyond the bound `publish` refuses;
- a request ends at once when nobody listens, when the connection drops, or when it is down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

OnMessage: TypeAlias = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply subject, header block and payload; the last three may be empty.

It runs in the read loop, so it must be short and must not block."""


class Publish(Protocol):
    """Hands messages to the connection."""

    def __call__(
        self, subject: bytes, payload: bytes, reply: bytes = b"", header: bytes = b""
    ) -> None:
        """Hand a message to the connection; it leaves at the end of this turn of the loop.

        While the connection is down, messages wait for it, up to the bound.

        Args:
            subject: Where to; no blanks, no wildcards.
            payload: The message.
            reply: Where an answer should go.
            header: A header block, from `NATS/1.0` to the blank line.

        Raises:
            PayloadTooLarge: Header and payload exceed the limit. Nothing was sent.
            ResourceExhausted: Too much waits to be sent already. Nothing was sent.
        """
        ...


class Subscription:
    """A subject that this process listens to."""

    __slots__ = ("denied", "on_message", "queue", "sid", "subject")

    def __init__(self, sid: bytes, subject: str, queue: str, on_message: OnMessage) -> None:
        self.sid = sid
        """Its name on the connection."""
        self.subject = subject
        """What it listens to; may hold wildcards."""
        self.queue = queue
        """The queue group that shares the messages; empty for a subscription of its own."""
        self.on_message = on_message
        """What gets the messages."""
        self.denied = False
        """Did the server refuse it? Known after the next barrier."""

    def __repr__(self) -> str:
        group = f" queue={self.queue}" if self.queue else ""
        return f"<Subscription {self.subject}{group}{' DENIED' if self.denied else ''}>"


class Listener(Protocol):
    """Hears what happens to the connection; every method must be short and must not raise."""

    def on_connected(self) -> None:
        """Tell that the connection is up, subscriptions restored."""
        ...

    def on_disconnected(self) -> None:
        """Tell that the connection is gone: nothing under way will be answered."""
        ...

    def on_publish_denied(self, subject: str) -> None:
        """Tell that the server refused a message on this subject (letter case may differ)."""
        ...


class Transport(Protocol):
    """One connection to the bus, from `connect` to `close`."""

    async def connect(self, *, wait: bool = False) -> None:
        """Connect, and stay connected from then on.

        Args:
            wait: Keep trying until a server answers, saying so every ten seconds; otherwise one
                round over the servers has to do.

        Raises:
            Disconnected: No server answered (only without `wait`). Nothing is left behind.
            Unauthenticated: The server refuses the credentials.
            PermissionDenied: Replies could not arrive: `inbox_prefix` may not be subscribed to.
            SetupError: Settings that cannot work, such as a certificate that is not there.
        """
        ...

    async def close(self) -> None:
        """Send what waits and end the connection; nothing is delivered any more."""
        ...

    def lose(self) -> None:
        """Give this connection up and make another, as if the network had failed."""
        ...

    async def wait_connected(self) -> None:
        """Return when it is up."""
        ...

    @property
    def connected(self) -> bool:
        """Is it up now?"""
        ...

    @property
    def reconnects(self) -> int:
        """How often it was lost and made again."""
        ...

    @property
    def server_url(self) -> str:
        """What it is connected to, without secrets; empty while the connection is down."""
        ...

    @property
    def max_payload_bytes(self) -> int:
        """What one message may weigh, headers counted."""
        ...

    @property
    def writable(self) -> bool:
        """Does the server keep up with what is sent? If not, `await drained()` before more."""
        ...

    @property
    def publish(self) -> Publish:
        """How to hand a message to the connection; ask for it each time, it changes."""
        ...

    def subscribe(self, subject: str, on_message: OnMessage, *, queue: str = "") -> Subscription:
        """Listen to a subject, now and after every reconnect; in force after a barrier."""
        ...

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening; what was on its way still arrives until a barrier has passed."""
        ...

    async def barrier(self, *, timeout: float = 5.0) -> None:
        """Return when the server has dealt with everything sent before.

        Raises:
            Disconnected: The connection was down or went down.
            DeadlineExceeded: No answer in time.
        """
        ...

    async def drained(self) -> None:
        """Return when the server keeps up again."""
        ...

    def listen(self, listener: Listener) -> None:
        """Tell this listener of what happens to the connection, until the connection is closed."""
        ...

    def unlisten(self, listener: Listener) -> None:
        """Tell this listener no more; not an error if it was not told."""
        ...
