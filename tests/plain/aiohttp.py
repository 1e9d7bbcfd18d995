"""Stands in for aiohttp in the processes that tests start, which run as installed without extras.

nats-py imports aiohttp wherever it is there, for WebSockets: a third of what it takes to start a
process, and tests start a thousand.
"""

raise ImportError("as where the extra `websocket` is not installed")
