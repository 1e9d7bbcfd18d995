"""Turn whatever a handler raises into an answer; always innermost, on by default."""

from __future__ import annotations

import asyncio
import logging
import secrets

from busmicro.call import Call, Handler
from busmicro.errors import CallError, Internal

log = logging.getLogger("busmicro.handler")

_SIGNALS = (CallError, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)
"""What is an answer already, or the end of the task, the process or the coroutine."""


class Recover:
    """Answers `internal` with an id where a handler failed; the text stays in the log.

    A `CallError` is an answer and passes.  Anything else is a fault of the service, and what it
    says may hold secrets, so the caller gets an id and the log gets the traceback beside it.
    """

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Run the handler."""
        try:
            return await call_next(call)
        except _SIGNALS:
            raise
        except BaseException as failure:  # pytest's `fail` raises none that is an Exception
            raise recovered(call, failure) from failure


def recovered(call: Call, failure: BaseException) -> Internal:
    """Log a fault of the service under an id, and return what others may know of it."""
    fault = secrets.token_hex(4)
    log.error("%s.%s failed [%s]", call.spec.service, call.spec.endpoint, fault, exc_info=failure)
    return Internal(f"the handler failed; its log says why, look for {fault}")
