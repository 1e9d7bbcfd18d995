"""Publish and subscribe: events, from fire-and-forget to lose-nothing."""

from busmicro.pubsub.handlers import Start, SubscribeOptions, Subscriber, Subscribers
from busmicro.pubsub.stream import Stream
from busmicro.pubsub.topic import Topic

__all__ = [
    "Start",
    "Stream",
    "SubscribeOptions",
    "Subscriber",
    "Subscribers",
    "Topic",
]
