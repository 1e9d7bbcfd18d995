"""What the programs of the fault tests publish and handle."""

from __future__ import annotations

import os
from dataclasses import dataclass

from busmicro.pubsub import Stream, Topic

STREAM = "ORDERS"
GROUP = "billing"
CONSUMER = "billing-orders-placed"


@dataclass
class Order:
    """An order; `id` is unique in its run."""

    id: str
    n: int


ORDERS = Topic(
    "orders.placed",
    Order,
    stream=Stream(
        STREAM,
        subjects=["orders.>"],
        replicas=int(os.environ.get("FAULTS_REPLICAS", "1")),
        work_queue=os.environ.get("FAULTS_WORK_QUEUE") == "1",
    ),
)
