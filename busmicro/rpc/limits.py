"""What one end of a stream may hold, and how long it waits, as the settings have it."""

from __future__ import annotations

from dataclasses import dataclass

from busmicro.rpc.frames import Window
from busmicro.rpc.stream import Patience
from busmicro.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a stream may hold and how long it waits."""

    window: Window
    patience: Patience
    max_message_bytes: int
    """What a message may weigh that does not fit one frame."""
    claim_check_bytes: int | None = None
    """What it weighs at most if it does not go through the object store; None for anything."""

    @classmethod
    def of(cls, settings: Settings, *, idle: float | None = None) -> Limits:
        """Take them from the settings; `idle` seconds, if given, win over theirs."""
        return cls(
            window=Window(messages=settings.stream_window, size_bytes=settings.stream_window_bytes),
            patience=Patience(
                ping_every=settings.stream_ping_interval,
                gone_after=settings.stream_grace,
                idle=settings.stream_idle_timeout if idle is None else idle,
            ),
            max_message_bytes=settings.max_message_bytes,
            claim_check_bytes=settings.claim_check_bytes,
        )
