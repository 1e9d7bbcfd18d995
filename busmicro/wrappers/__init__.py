"""What goes around calls, streams and events; one shape, `busmicro.call.Wrapper`, for all."""

from collections.abc import Callable
from typing import Final, NamedTuple

from busmicro.call import Kind, Wrapper
from busmicro.wrappers.adaptive import AdaptiveLimit
from busmicro.wrappers.breaker import CircuitBreaker, CircuitOpen, is_fault
from busmicro.wrappers.cache import Cache
from busmicro.wrappers.checked import check_wrapper, checked
from busmicro.wrappers.circuit import Circuit, State
from busmicro.wrappers.concurrency import ConcurrencyLimit
from busmicro.wrappers.deadline import Deadline
from busmicro.wrappers.effects import EffectStore, MemoryStore, SqliteStore
from busmicro.wrappers.fault import Fault
from busmicro.wrappers.hedge import Hedge
from busmicro.wrappers.log import Log, start_logging
from busmicro.wrappers.metrics import Metrics
from busmicro.wrappers.once import once
from busmicro.wrappers.only import Only, only
from busmicro.wrappers.rate_limit import RateLimit
from busmicro.wrappers.recover import Recover, recovered
from busmicro.wrappers.retry import Budget, Retry
from busmicro.wrappers.trace import Trace
from busmicro.wrappers.validate import Validate

__all__ = [
    "RECOMMENDED",
    "AdaptiveLimit",
    "Budget",
    "Cache",
    "Circuit",
    "CircuitBreaker",
    "CircuitOpen",
    "ConcurrencyLimit",
    "Deadline",
    "EffectStore",
    "Fault",
    "Hedge",
    "Log",
    "MemoryStore",
    "Metrics",
    "Only",
    "RateLimit",
    "Recommended",
    "Recover",
    "Retry",
    "SqliteStore",
    "State",
    "Trace",
    "Validate",
    "check_wrapper",
    "checked",
    "is_fault",
    "once",
    "only",
    "recovered",
    "start_logging",
]


class Recommended(NamedTuple):
    """What makes the wrappers of a service that does not choose its own, outermost first."""

    client: tuple[Callable[[], Wrapper], ...]
    """Around calls that it makes."""
    handler: tuple[Callable[[], Wrapper], ...]
    """Around its handlers."""


def _breaker() -> Wrapper:
    """Make a breaker for calls and streams: events have a stream's patience, or nobody to fail."""
    return only(CircuitBreaker(), kinds=[Kind.UNARY, Kind.STREAM])


# The order in which wrappers belong, from the outermost in. Those in brackets need to be told a
# number, or belong to some endpoints only, so that nobody gets them unasked.
RECOMMENDED: Final = Recommended(
    client=(
        # Trace        outermost: the span of the call is the whole of it, retries and waiting too
        Trace,
        # Metrics      the same, in figures
        Metrics,
        # Log          within Trace, so that its line has the trace's id
        Log,
        # [Deadline]   before anything that takes time: pauses and queues count too
        # [Cache]      what is known need not be asked, tried again, or counted
        # Retry        around all that an attempt goes through, so that each one is counted
        Retry,
        # [Hedge]      an attempt may be two
        # Breaker      within Retry: it sees every attempt, and an open circuit is not tried again
        _breaker,
        # [ConcurrencyLimit, RateLimit]  innermost: what never leaves must not take a place
        # [Fault]      stands for the network and the service
    ),
    handler=(
        # Trace, Metrics, Log  as above: what is refused is seen, too
        Trace,
        Metrics,
        Log,
        # [Deadline]   as above
        # [RateLimit]  the cheapest way to refuse comes first
        # [ConcurrencyLimit, AdaptiveLimit]  what is over the rate must not take a place
        # [Validate]   decodes the message: only for what will run
        # [Cache]      of valid messages only
        # [once]       the transaction is the handler's own
        # Recover      innermost, so that the others see how it ended; it is always there
        Recover,
    ),
)
