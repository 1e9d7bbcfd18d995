"""The frames of streams: one inbox for all of a process's streams, one address for each.

A stream's address is `<inbox>.<token>`; its frames arrive on `<inbox>.<token>.<frame>`, answers to
its opening, and the server's word that nobody listens, on the address itself.  A token is random:
who does not know it can neither read the stream nor put a frame into it.

A frame for a stream that is not here (any more) is answered with `n`, if it asks for an answer: so
the other end hears that nobody is left.
"""

from __future__ import annotations

import logging
import secrets
from typing import Final, Protocol

from busmicro.errors import BusmicroError, Disconnected, ResourceExhausted
from busmicro.transport.base import OnMessage, Subscription, Transport
from busmicro.transport.nats import require_allowed
from busmicro.transport.subjects import ReplyPolicy

log = logging.getLogger("busmicro.transport")

_TOKEN_BYTES: Final = 8
_TOKEN_LENGTH: Final = 2 * _TOKEN_BYTES
NO_SUCH_STREAM: Final = b"n"


class FrameTaker(Protocol):
    """One end of a stream: what the inbox tells it; every method is short and does not raise."""

    on_frame: OnMessage
    """Called with frame, reply subject, header block and payload; an empty frame is what came to
    the address itself. It may be set anew at any time."""

    def on_connected(self) -> None:
        """Tell that the connection is up again."""
        ...

    def on_disconnected(self) -> None:
        """Tell that the connection is gone."""
        ...

    def on_publish_denied(self, subject: str) -> None:
        """Tell that the server refused a message on this subject (letter case may differ)."""
        ...

    def on_closing(self) -> None:
        """Tell that the connection is about to be closed, for good; the end gives itself up."""
        ...


class Frames:
    """Where the frames of this process's streams arrive."""

    def __init__(self, transport: Transport, *, inbox_prefix: str, policy: ReplyPolicy) -> None:
        self._transport = transport
        self._policy = policy
        self._prefix = f"{inbox_prefix}.{secrets.token_hex(8)}"
        self._token_at = len(self._prefix) + 1
        self._frame_at = self._token_at + _TOKEN_LENGTH + 1
        self._subscription: Subscription | None = None
        self._ends: dict[bytes, FrameTaker] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._ends)

    async def start(self) -> None:
        """Listen, if that was not done before, and make sure of it.

        Raises:
            PermissionDenied: The inbox may not be subscribed to; the text says which setting.
            Disconnected: The connection is down.
        """
        if self._subscription is None:
            self._transport.listen(self)
            self._subscription = self._transport.subscribe(f"{self._prefix}.>", self._on_message)
            await self._transport.barrier()
        require_allowed(self._subscription)

    def add(self, end: FrameTaker, *, most: int) -> bytes:
        """Give an end of a stream its address.

        Args:
            end: What gets the frames.
            most: How many ends this process may have.

        Returns:
            The address, to be given back with `remove`.

        Raises:
            ResourceExhausted: There are so many. Nothing was done.
            Disconnected: The connection is being closed. Nothing was done.
        """
        if self._closed:
            raise Disconnected("the connection to NATS is being closed", not_run=True)
        if len(self._ends) >= most:
            raise ResourceExhausted(
                f"{most} streams are open in this process; close some, "
                "or raise BUSMICRO_MAX_STREAMS",
                not_run=True,
            )
        token = secrets.token_hex(_TOKEN_BYTES).encode()
        self._ends[token] = end
        return b"%b.%b" % (self._prefix.encode(), token)

    def remove(self, address: bytes) -> None:
        """Forget an end; frames for it are answered from now on."""
        self._ends.pop(address[self._token_at :], None)

    def close(self) -> None:
        """End every stream, while the other ends can still be told."""
        self._closed = True
        for end in tuple(self._ends.values()):
            end.on_closing()

    def _on_message(self, subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        end = self._ends.get(subject[self._token_at : self._frame_at - 1])
        if end is not None:
            end.on_frame(subject[self._frame_at :], reply, header, payload)
        elif reply and self._policy.allows_below(reply):
            self._answer(reply)

    def _answer(self, reply: bytes) -> None:
        try:
            self._transport.publish(b"%b.%b" % (reply, NO_SUCH_STREAM), b"")
        except BusmicroError as refused:
            log.debug("the end of a dead stream could not be told: %s", refused)

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Tell every end."""
        for end in tuple(self._ends.values()):
            end.on_connected()

    def on_disconnected(self) -> None:
        """Tell every end."""
        for end in tuple(self._ends.values()):
            end.on_disconnected()

    def on_publish_denied(self, subject: str) -> None:
        """Tell every end; the one that it is about knows."""
        for end in tuple(self._ends.values()):
            end.on_publish_denied(subject)
