"""Bytes to NATS and back; the only package that knows the client library."""

from busmicro.transport.base import Listener, OnMessage, Subscription, Transport
from busmicro.transport.buckets import Bucket, Entry
from busmicro.transport.jetstream import JetStream, StoredMessage, err_code, read_answer
from busmicro.transport.nats import NatsTransport, require_allowed
from busmicro.transport.pull import Pull
from busmicro.transport.replies import Replies, Reply, collect
from busmicro.transport.subjects import (
    QUEUE_GROUP,
    ReplyPolicy,
    Subjects,
    check_endpoint,
    check_node,
    check_service,
    check_version,
    matches,
)

__all__ = [
    "QUEUE_GROUP",
    "Bucket",
    "Entry",
    "JetStream",
    "Listener",
    "NatsTransport",
    "OnMessage",
    "Pull",
    "Replies",
    "Reply",
    "ReplyPolicy",
    "StoredMessage",
    "Subjects",
    "Subscription",
    "Transport",
    "check_endpoint",
    "check_node",
    "check_service",
    "check_version",
    "collect",
    "err_code",
    "matches",
    "read_answer",
    "require_allowed",
]
