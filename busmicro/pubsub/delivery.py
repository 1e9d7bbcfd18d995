"""What becomes of a delivered event: handled, tried again, or given up.

The rules, in one place; `listeners.py` carries them out.

| what happened | what is done |
|---|---|
| the handler returned | acknowledge |
| it does not decode, or `Reject` was raised | a dead letter at once, then terminate |
| the handler failed, attempts are left | give back, to come again after the pause of the table |
| the handler failed for the last time | a dead letter, then terminate |
| delivered once more than allowed | a dead letter, then one more try, alone (ADR 0014) |
| the node stops before it began | give back at once |
"""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass
from typing import Final

from busmicro.call import Call
from busmicro.errors import Aborted, CallError, Cancelled, CodecError, InvalidArgument, Reject
from busmicro.pubsub.handlers import SubscribeOptions
from busmicro.wrappers import recovered

ACK: Final = b"+ACK"
TERM: Final = b"+TERM"
NAK: Final = b"-NAK"
IN_PROGRESS: Final = b"+WPI"


class Fate(enum.Enum):
    """What is to become of an event whose handling failed."""

    AGAIN = "again"
    """It is tried once more."""
    DEAD = "dead"
    """It is given up, and becomes a dead letter."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of an event whose handling failed, and when."""

    fate: Fate
    """What."""
    pause: float = 0.0
    """Seconds until the next attempt."""


def nak(pause: float) -> bytes:
    """Write the wish to get an event again after so many seconds."""
    return b'-NAK {"delay": %d}' % int(pause * 1e9) if pause > 0 else NAK


def judge(call: Call, failure: CallError, attempt: int, options: SubscribeOptions) -> Verdict:
    """Decide what becomes of an event whose handling failed.

    Args:
        call: The event.
        failure: How it failed.
        attempt: Which attempt that was, from 1.
        options: What the handler's author said.
    """
    if isinstance(failure, Reject) or is_unreadable(call, failure):
        return Verdict(Fate.DEAD)
    if attempt >= options.max_deliver:
        return Verdict(Fate.DEAD)
    asked = failure.retry_after
    return Verdict(Fate.AGAIN, options.pause_after(attempt) if asked is None else asked)


def is_unreadable(call: Call, failure: CallError) -> bool:
    """Tell an event that does not decode from one whose handler says that it is wrong."""
    return (
        not call.began
        and isinstance(failure, InvalidArgument)
        and isinstance(failure.__cause__, CodecError)
    )


def silent_end(attempts: int) -> CallError:
    """Say that no attempt has ended with a word: nodes died, or froze, while they worked on it."""
    return Aborted(
        f"{attempts} attempts ended without a word: each time the node died, or was silent for "
        "longer than ack_wait"
    )


def as_call_error(call: Call, failure: BaseException) -> CallError:
    """Return a failure as what a dead letter can say of it; what has no name is logged."""
    if isinstance(failure, CallError):
        return failure
    if isinstance(failure, CodecError):
        return InvalidArgument(str(failure), details=failure.details)
    if isinstance(failure, asyncio.CancelledError):
        return Cancelled("the handler was cancelled from inside")
    told = recovered(call, failure)
    told.__cause__ = failure
    return told
