"""Bytes to NATS, or round this process, and back; alone in knowing the client library."""

from busmicro.transport.base import Listener, OnMessage, Subscription, Transport
from busmicro.transport.broker import MemoryBroker, Network, Overtaking
from busmicro.transport.buckets import Bucket, Entry
from busmicro.transport.choose import transport_for
from busmicro.transport.frames import Frames
from busmicro.transport.jetstream import JetStream, StoredMessage, err_code, read_answer
from busmicro.transport.memory import MemoryTransport
from busmicro.transport.nats import NatsTransport, require_allowed
from busmicro.transport.objects import Claim, Objects
from busmicro.transport.pull import Pull
from busmicro.transport.replies import Replies, Reply, collect
from busmicro.transport.subjects import (
    QUEUE_GROUP,
    ReplyPolicy,
    Subjects,
    bucket_name,
    check_endpoint,
    check_node,
    check_service,
    check_version,
    matches,
    may_be_named,
)

__all__ = [
    "QUEUE_GROUP",
    "Bucket",
    "Claim",
    "Entry",
    "Frames",
    "JetStream",
    "Listener",
    "MemoryBroker",
    "MemoryTransport",
    "NatsTransport",
    "Network",
    "Objects",
    "OnMessage",
    "Overtaking",
    "Pull",
    "Replies",
    "Reply",
    "ReplyPolicy",
    "StoredMessage",
    "Subjects",
    "Subscription",
    "Transport",
    "bucket_name",
    "check_endpoint",
    "check_node",
    "check_service",
    "check_version",
    "collect",
    "err_code",
    "matches",
    "may_be_named",
    "read_answer",
    "require_allowed",
    "transport_for",
]
