"""Count the messages of streams as they pass."""

from __future__ import annotations


class Count:
    """A tap that counts messages and changes none; of one stream, or of many together."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        """Messages that have left this process."""
        self.received = 0
        """Messages that have arrived here, and were taken."""

    def outgoing(self, message: object, /) -> object:
        """Count a message that leaves."""
        self.sent += 1
        return message

    def incoming(self, message: object, /) -> object:
        """Count a message that has arrived."""
        self.received += 1
        return message
