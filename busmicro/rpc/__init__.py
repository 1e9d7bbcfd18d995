"""Ask and answer: the two ends of a call."""

from busmicro.rpc.callstream import CallStream
from busmicro.rpc.client import Answers, Caller
from busmicro.rpc.handlers import DEFAULT_TIMEOUT, Endpoint, Endpoints
from busmicro.rpc.monitor import (
    HEALTH,
    STATS,
    CheckReport,
    Health,
    Monitor,
    Stats,
    SubscriberFigures,
    iso,
)
from busmicro.rpc.route import CallOptions
from busmicro.rpc.server import RpcServer

__all__ = [
    "DEFAULT_TIMEOUT",
    "HEALTH",
    "STATS",
    "Answers",
    "CallOptions",
    "CallStream",
    "Caller",
    "CheckReport",
    "Endpoint",
    "Endpoints",
    "Health",
    "Monitor",
    "RpcServer",
    "Stats",
    "SubscriberFigures",
    "iso",
]
