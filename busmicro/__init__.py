"""busmicro: message-bus-first microservices for Python, over NATS and nothing else."""

from busmicro.call import Call, Handler, Kind, Side, Spec, Tap, Wrapper, current_call
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
    NoResponders,
    NotFound,
    OutOfRange,
    PayloadTooLarge,
    PermissionDenied,
    ResourceExhausted,
    SetupError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from busmicro.headers import Headers
from busmicro.rpc import Answers, Client
from busmicro.service import Service
from busmicro.settings import Settings
from busmicro.wrappers import Recover, Retry

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Answers",
    "BusmicroError",
    "Call",
    "CallError",
    "Cancelled",
    "Client",
    "Code",
    "CodecError",
    "DataLoss",
    "DeadlineExceeded",
    "Disconnected",
    "FailedPrecondition",
    "Handler",
    "Headers",
    "Internal",
    "InvalidArgument",
    "Kind",
    "NatsCluster",
    "NatsServer",
    "NoResponders",
    "NotFound",
    "OutOfRange",
    "PayloadTooLarge",
    "PermissionDenied",
    "Recover",
    "ResourceExhausted",
    "Retry",
    "Service",
    "Settings",
    "SetupError",
    "Side",
    "Spec",
    "Tap",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "Wrapper",
    "current_call",
    "endpoint_options",
]
