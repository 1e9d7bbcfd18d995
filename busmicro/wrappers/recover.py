"""Turn whatever a handler raises into an answer; always innermost, on by default."""

from __future__ import annotations

import logging
import secrets

from busmicro.call import Call, Handler
from busmicro.errors import CallError, Internal

log = logging.getLogger("busmicro.handler")


class Recover:
    """Answers `internal` with an id where a handler failed; the text stays in the log.

    A `CallError` is an answer and passes.  Anything else is a fault of the service, and what it
    says may hold secrets, so the caller gets an id and the log gets the traceback beside it.
    """

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Run the handler."""
        try:
            return await call_next(call)
        except CallError:
            raise
        except (Exception, SystemExit) as failure:
            fault = secrets.token_hex(4)
            log.exception("%s.%s failed [%s]", call.spec.service, call.spec.endpoint, fault)
            raise Internal(f"the handler failed; its log says why, look for {fault}") from failure
