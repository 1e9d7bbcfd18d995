"""Publish and subscribe: events, from fire-and-forget to lose-nothing."""

from busmicro.pubsub.batch import publish_many
from busmicro.pubsub.deadletters import DEAD_LETTERS, DeadLetter, DeadLetters
from busmicro.pubsub.declare import Declarations
from busmicro.pubsub.events import Events
from busmicro.pubsub.handlers import (
    DEFAULT_BACKOFF,
    Durable,
    KeyOf,
    Start,
    SubscribeOptions,
    Subscriber,
    Subscribers,
)
from busmicro.pubsub.pipeline import StoredMany
from busmicro.pubsub.publisher import DEFAULT_TIMEOUT as PUBLISH_TIMEOUT
from busmicro.pubsub.publisher import Publisher, PublishOptions, Stored, moment
from busmicro.pubsub.schedule import Cron, CronTable
from busmicro.pubsub.stream import Stream
from busmicro.pubsub.subscriptions import Subscriptions
from busmicro.pubsub.topic import Topic

__all__ = [
    "DEAD_LETTERS",
    "DEFAULT_BACKOFF",
    "PUBLISH_TIMEOUT",
    "Cron",
    "CronTable",
    "DeadLetter",
    "DeadLetters",
    "Declarations",
    "Durable",
    "Events",
    "KeyOf",
    "PublishOptions",
    "Publisher",
    "Start",
    "Stored",
    "StoredMany",
    "Stream",
    "SubscribeOptions",
    "Subscriber",
    "Subscribers",
    "Subscriptions",
    "Topic",
    "moment",
    "publish_many",
]
