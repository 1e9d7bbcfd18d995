"""Let events have their effect once, although they may be delivered more than once.

A handler that dies between its effect and the acknowledgement gets its event again; so does one
that was frozen for too long.  With `once`, the event is skipped when its effect is there.
"""

from __future__ import annotations

import logging

from busmicro.call import Call, Handler, Kind, Side, Wrapper
from busmicro.errors import SetupError
from busmicro.wrappers.effects import EffectStore

log = logging.getLogger("busmicro.once")


def once(store: EffectStore) -> Wrapper:
    """Skip events that this handler has handled before, and acknowledge them.

    An event goes by its id, the same for every delivery, and by its consumer, so that two groups
    may share a store; a subscription without a group is another consumer each time its process
    starts. What JetStream does not keep (calls, their streams, events of core topics) passes: it
    is delivered once at most.

    Args:
        store: Remembers what was handled, in one transaction with what the handler writes.

    Returns:
        A wrapper for `Service(handler_wrappers=[…])`.

    Raises:
        SetupError: From the wrapper, for a handler of lists: one event of a list may be new and
            another not.
    """

    async def handle_once(call: Call, call_next: Handler) -> object:
        key = _key(call)
        if key is None:
            return await call_next(call)
        async with store.once(key) as first:
            if first:
                return await call_next(call)
        log.debug("%s: skipped %s, it was handled before", call.spec.endpoint, key)
        return None

    return handle_once


def _key(call: Call) -> str | None:
    """Return what tells this event at this handler from all others; None for what has no id."""
    if call.spec.kind is not Kind.EVENT or call.spec.side is not Side.HANDLER:
        return None
    delivery = call.delivery
    if delivery is not None:
        return f"{delivery.consumer}:{delivery.id}"
    if not call.payload and isinstance(call.message, list):  # many events have no one payload
        raise SetupError(
            f"once(store) cannot wrap the handler of lists of {call.spec.endpoint}: let it take "
            "one event at a time, or leave the wrapper out and make the handler idempotent"
        )
    return None
