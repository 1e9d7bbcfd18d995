"""busmicro: message-bus-first microservices for Python, over NATS and nothing else.

Everything named here is imported on first use: `import busmicro` alone, and with it the command
line, starts in no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from busmicro.call import Call, Handler, Kind, Side, Spec, Tap, Wrapper, current_call
    from busmicro.client import Client
    from busmicro.delivery import Delivery
    from busmicro.embedded import NatsCluster, NatsServer
    from busmicro.endpoint import endpoint_options
    from busmicro.errors import (
        Aborted,
        AlreadyExists,
        BusmicroError,
        CallError,
        Cancelled,
        Code,
        CodecError,
        DataLoss,
        DeadlineExceeded,
        Disconnected,
        FailedPrecondition,
        Internal,
        InvalidArgument,
        NoJetStream,
        NoResponders,
        NotAllPublished,
        NotFound,
        NotSupported,
        OutOfRange,
        PayloadTooLarge,
        PermissionDenied,
        PublishUnknown,
        Reject,
        ResourceExhausted,
        SetupError,
        StreamConflict,
        StreamFull,
        StreamMissing,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        Unknown,
    )
    from busmicro.headers import Headers
    from busmicro.pubsub import DeadLetter, DeadLetters, Events, Stored, StoredMany, Stream, Topic
    from busmicro.rpc import Answers, CallStream
    from busmicro.service import Service
    from busmicro.settings import Settings
    from busmicro.wrappers import (
        AdaptiveLimit,
        Cache,
        CircuitBreaker,
        CircuitOpen,
        ConcurrencyLimit,
        Deadline,
        Fault,
        Hedge,
        Log,
        Metrics,
        RateLimit,
        Recover,
        Retry,
        Trace,
        Validate,
        once,
        only,
    )

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AdaptiveLimit",
    "AlreadyExists",
    "Answers",
    "BusmicroError",
    "Cache",
    "Call",
    "CallError",
    "CallStream",
    "Cancelled",
    "CircuitBreaker",
    "CircuitOpen",
    "Client",
    "Code",
    "CodecError",
    "ConcurrencyLimit",
    "DataLoss",
    "DeadLetter",
    "DeadLetters",
    "Deadline",
    "DeadlineExceeded",
    "Delivery",
    "Disconnected",
    "Events",
    "FailedPrecondition",
    "Fault",
    "Handler",
    "Headers",
    "Hedge",
    "Internal",
    "InvalidArgument",
    "Kind",
    "Log",
    "Metrics",
    "NatsCluster",
    "NatsServer",
    "NoJetStream",
    "NoResponders",
    "NotAllPublished",
    "NotFound",
    "NotSupported",
    "OutOfRange",
    "PayloadTooLarge",
    "PermissionDenied",
    "PublishUnknown",
    "RateLimit",
    "Recover",
    "Reject",
    "ResourceExhausted",
    "Retry",
    "Service",
    "Settings",
    "SetupError",
    "Side",
    "Spec",
    "Stored",
    "StoredMany",
    "Stream",
    "StreamConflict",
    "StreamFull",
    "StreamMissing",
    "Tap",
    "Topic",
    "Trace",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "Validate",
    "Wrapper",
    "current_call",
    "endpoint_options",
    "once",
    "only",
]

if not TYPE_CHECKING:  # type checkers shall know the names above and no others
    _ELSEWHERE = {
        "busmicro.call": "Call Handler Kind Side Spec Tap Wrapper current_call",
        "busmicro.delivery": "Delivery",
        "busmicro.pubsub": "DeadLetter DeadLetters Events Stored StoredMany Stream Topic",
        "busmicro.embedded": "NatsCluster NatsServer",
        "busmicro.endpoint": "endpoint_options",
        "busmicro.headers": "Headers",
        "busmicro.client": "Client",
        "busmicro.rpc": "Answers CallStream",
        "busmicro.service": "Service",
        "busmicro.settings": "Settings",
        "busmicro.wrappers": "AdaptiveLimit Cache CircuitBreaker CircuitOpen ConcurrencyLimit "
        "Deadline Fault Hedge Log Metrics RateLimit Recover Retry Trace Validate once only",
    }
    _HOMES = dict.fromkeys(__all__, "busmicro.errors") | {
        name: home for home, names in _ELSEWHERE.items() for name in names.split()
    }

    def __getattr__(name):
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module 'busmicro' has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(home), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
