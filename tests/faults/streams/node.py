"""A node of the service that the fault tests open streams to.

Usage: node.py LOG NAME
"""

from __future__ import annotations

import sys

from busmicro import Service
from tests.faults.streams.chat import Chat

service = Service("chat", id=sys.argv[2])
service.handle(Chat(service))


if __name__ == "__main__":
    service.run()
