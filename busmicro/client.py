"""A client: calls services, publishes events and listens to them, on one connection."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from busmicro.bus import Bus
from busmicro.call import Wrapper
from busmicro.rpc import DEFAULT_TIMEOUT, Caller, CallOptions
from busmicro.settings import Settings


class Client(Caller):
    """Calls services by name, publishes events and listens to them.

    Args:
        url: Where NATS is; left out, `BUSMICRO_NATS_URL` or `nats://127.0.0.1:4222`.
        wrappers: Put around every call and every event published, the first one outermost. Around
            calls a `Retry` of what certainly did not run is added innermost unless one is given.
        timeout: Seconds for a call that does not say.
        namespace: The prefix that the services were started with.
        wait_for_ready: Wait for a connection and for a node instead of failing at once.
        settings: Everything else; left out, read from `BUSMICRO_*`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        wrappers: Sequence[Wrapper] = (),
        timeout: float = DEFAULT_TIMEOUT,
        namespace: str | None = None,
        wait_for_ready: bool = False,
        settings: Settings | None = None,
    ) -> None:
        given = settings or Settings.load(nats_url=url, namespace=namespace)
        options = CallOptions(timeout=timeout, wait_for_ready=wait_for_ready)
        super().__init__(Bus(given), wrappers=wrappers, options=options, name="")

    @classmethod
    def on(cls, bus: Bus, *, wrappers: Sequence[Wrapper], name: str) -> Self:
        """Make a client that uses somebody else's connection and does not close it."""
        client = cls.__new__(cls)
        Caller.__init__(client, bus, wrappers=wrappers, options=CallOptions(), name=name)
        return client

    async def __aenter__(self) -> Self:
        await self._bus.open(wait=self._options.wait_for_ready)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._bus.close()
