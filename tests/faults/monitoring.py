"""What a server says of itself, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from busmicro import NatsServer


async def ask(server: NatsServer, path: str) -> dict[str, Any]:
    """Return what the server answers at a path, like `/varz`."""
    host, _, port = (server.monitoring_url or "").removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


async def connections(server: NatsServer) -> int:
    """Return how many clients the server has."""
    return int((await ask(server, "/varz"))["connections"])
