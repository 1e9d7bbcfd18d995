"""What machines ask a process over HTTP: `/health/live`, `/health/ready` and `/metrics`.

Off unless a port is set (`BUSMICRO_METRICS_PORT`), and on loopback unless a host is.  It answers
GET and HEAD, one request a connection, and takes so little from anybody that nobody can hurt the
service by it.  `/metrics` needs `busmicro[prometheus]`.

It runs in the service's own event loop: a loop that is stuck does not answer, and that is what
`/health/live` is for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple

from pydantic_core import to_json

from busmicro.errors import SetupError
from busmicro.rpc import Health

log = logging.getLogger("busmicro.probes")

_LONGEST_REQUEST: Final = 8192
_PATIENCE: Final = 5.0
_MOST_AT_ONCE: Final = 64
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is answered."""

    status: HTTPStatus
    """How it went."""
    body: bytes
    """What."""
    content_type: str = _JSON
    """What that is."""


class Probes:
    """Answers on one port.

    Args:
        health: Tells how the node is.
        lag: Tells how late the event loop has been, in seconds.
        host: The address to listen on.
        port: The port; 0 for any that is free.
    """

    def __init__(
        self, health: Callable[[], Health], lag: Callable[[], float], *, host: str, port: int
    ) -> None:
        self.port = port
        """Where it listens, once started."""
        self._health = health
        self._lag = lag
        self._host = host
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            SetupError: The port cannot be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self.port, limit=_LONGEST_REQUEST
            )
        except OSError as taken:
            raise SetupError(
                f"nothing can listen on {self._host}:{self.port} ({taken.strerror}): set "
                "metrics_port (or BUSMICRO_METRICS_PORT) to another port, or to 0 for any"
            ) from taken
        self.port = self._server.sockets[0].getsockname()[1]
        log.info("http://%s:%d has /metrics, /health/live and /health/ready", self._host, self.port)

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; whoever takes too long or asks for too much is cut off."""
        self._writers.add(writer)
        try:
            if len(self._writers) <= _MOST_AT_ONCE:
                async with asyncio.timeout(_PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as e:
            log.debug("a probe was cut off: %r", e)
        finally:
            self._writers.discard(writer)
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        """Write the whole answer to the head of a request."""
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        path = rest.split(" ")[0].split("?")[0]
        if method in {"GET", "HEAD"}:
            answer = self._look_up(path)
        else:
            answer = Answer(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n", _TEXT)
        status, body, content_type = answer
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
            "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        return lines.encode() + (body if method != "HEAD" else b"")

    def _look_up(self, path: str) -> Answer:
        answers = {
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/metrics": _metrics,
        }
        if path not in answers:
            return Answer(HTTPStatus.NOT_FOUND, (" ".join(answers) + "\n").encode(), _TEXT)
        try:
            return answers[path]()
        except Exception:
            log.exception("%s could not be answered", path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"the log says why\n", _TEXT)

    def _live(self) -> Answer:
        """Say that the loop turns."""
        return Answer(HTTPStatus.OK, to_json({"status": "live", "loop_lag": self._lag()}))

    def _ready(self) -> Answer:
        """Say whether the node takes requests."""
        health = self._health()
        ready = health.connected and health.status in {"serving", "failing"}
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, health.model_dump_json().encode())


def _metrics() -> Answer:
    """Write what `prometheus_client` has gathered, ours and the program's own."""
    try:
        from prometheus_client import (  # noqa: PLC0415 - an extra
            CONTENT_TYPE_LATEST,
            generate_latest,
        )
    except ImportError:
        missing = b"needs: pip install 'busmicro[prometheus]'\n"
        return Answer(HTTPStatus.NOT_IMPLEMENTED, missing, _TEXT)
    return Answer(HTTPStatus.OK, generate_latest(), CONTENT_TYPE_LATEST)
