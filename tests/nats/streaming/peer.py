"""The other end of a stream, made by hand: a NATS client that publishes and reads frames itself."""

from __future__ import annotations

import asyncio
import secrets
from typing import NamedTuple

import nats
from nats.aio.msg import Msg

WINDOW = "256 2097152"
STANDING = b"256 2097152 0 0"


class Frame(NamedTuple):
    """What arrived at the peer's address."""

    name: str
    """Empty for what came to the address itself."""
    reply: str
    headers: dict[str, str]
    payload: bytes


class Peer:
    """One end of one stream; at the caller or, after `answer`, at the node."""

    def __init__(self, raw: nats.NATS) -> None:
        self.raw = raw
        self.address = f"_INBOX.{secrets.token_hex(8)}.{secrets.token_hex(8)}"
        self.other = ""
        """Where the other end listens."""
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()

    async def listen(self) -> None:
        """Hear what comes to the address and below it."""
        for subject in (self.address, f"{self.address}.*"):
            await self.raw.subscribe(subject, cb=self._on_message)

    async def _on_message(self, message: Msg) -> None:
        name = message.subject[len(self.address) + 1 :]
        frame = Frame(name, message.reply, dict(message.headers or {}), message.data)
        self._frames.put_nowait(frame)

    # --- as a caller ----------------------------------------------------------------------------

    async def ask(
        self, subject: str, payload: bytes = b"", *, window: str | None = WINDOW, **headers: str
    ) -> Frame:
        """Ask for a stream; return what is answered."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if window is not None:
            given["Bus-Stream"] = window
        await self.raw.publish(subject, payload, reply=self.address, headers=given or None)
        answer = await self.next()
        if answer.name == "a":
            self.other = answer.reply
        return answer

    # --- as a node ------------------------------------------------------------------------------

    async def answer(self, request: Msg, **headers: str) -> None:
        """Accept a stream that was asked for."""
        self.other = request.reply
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.raw.publish(
            f"{request.reply}.a", STANDING, reply=self.address, headers=given or None
        )

    # --- as either ------------------------------------------------------------------------------

    async def send(self, name: str, payload: bytes = b"", *, ask: bool = False) -> None:
        """Send a frame."""
        await self.raw.publish(f"{self.other}.{name}", payload, reply=self.address if ask else "")

    async def next(self, kind: str = "") -> Frame:
        """Return the next frame, or the next of a kind; others are passed over."""
        async with asyncio.timeout(5):
            while True:
                frame = await self._frames.get()
                if frame.name.startswith(kind):
                    return frame

    @property
    def waiting(self) -> list[Frame]:
        """What has come and was not looked at; it is looked at now."""
        found = []
        while not self._frames.empty():
            found.append(self._frames.get_nowait())
        return found
