"""Discovery: the key-value registry where there is one, `$SRV` where there is not.

Nothing here stops a service from starting or a call from getting through: what fails is said once
and tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import BusmicroError, CallError, Disconnected
from busmicro.registry.base import (
    Change,
    Description,
    Node,
    NodeStats,
    ServiceRecord,
    ServiceStats,
    log,
)
from busmicro.registry.kv import KvRegistry
from busmicro.registry.srv import SrvRegistry
from busmicro.transport import Replies, ReplyPolicy, Transport

_RETRY_AFTER = 10.0


class Discovery:
    """Who is up, from whoever can tell.

    Args:
        transport: The connection.
        replies: Where answers arrive.
        namespace: Registries of different namespaces do not see one another.
        ttl: Seconds of silence after which a node of this process is gone.
        clock: Tells time and waits.
    """

    def __init__(
        self,
        transport: Transport,
        replies: Replies,
        *,
        namespace: str = "",
        ttl: float = 30.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.kv = KvRegistry(transport, replies, namespace=namespace, ttl=ttl, clock=clock)
        self.srv = SrvRegistry(transport, replies, namespace=namespace, clock=clock)
        self._transport = transport
        self._clock = clock
        self._usable: bool | None = None
        self._ask_again_at = 0.0
        self._said = ""
        transport.listen(self)

    def publishes(
        self,
        *,
        stats: Callable[[], ServiceStats] | None = None,
        running: Callable[[], int] | None = None,
        replies_allowed: ReplyPolicy | None = None,
    ) -> None:
        """Name the sources of what the nodes of this process say of themselves.

        Args:
            stats: Gives the figures of the endpoints.
            running: Tells how many requests run now.
            replies_allowed: Decides where answers to `$SRV` may go.
        """
        if stats is not None:
            self.srv.stats_provider = stats
        if running is not None:
            self.kv.running = running
        if replies_allowed is not None:
            self.srv.replies_allowed = replies_allowed

    # --- Listener -------------------------------------------------------------------------------

    def on_connected(self) -> None:
        """Nothing to do: whoever needs JetStream next looks whether this server has it."""

    def on_disconnected(self) -> None:
        """Know nothing of the next server."""
        self._usable = None

    def on_publish_denied(self, subject: str) -> None:
        """Nothing to do."""

    # --- which of them --------------------------------------------------------------------------

    async def kv_usable(self) -> bool:
        """Tell whether the key-value registry can be used now; say once if it cannot."""
        if self._usable is False and self._clock.now() >= self._ask_again_at:
            self._usable = None
        if self._usable is None:
            try:
                if await self.kv.jetstream.available():
                    self._works()
                else:
                    self._fails("JetStream is not enabled: start the server with nats-server -js")
            except Disconnected:
                return False
            except CallError as failure:
                self._fails(failure.message)
        return bool(self._usable)

    def _works(self) -> None:
        self._usable = True
        if self._said:
            self._said = ""
            log.info("JetStream is there: the registry is used again")

    def _fails(self, why: str) -> None:
        self._usable = False
        self._ask_again_at = self._clock.now() + _RETRY_AFTER
        if not self._said:
            self._said = why
            expected = self._transport.server_url.startswith("memory://")
            log.log(
                logging.DEBUG if expected else logging.WARNING,
                "nodes are found by asking them, for the key-value registry cannot be used (%s); "
                "calls and plain events work, a node that hangs is not shown",
                why,
            )

    # --- being known ----------------------------------------------------------------------------

    async def register(self, node: Node, description: Description) -> None:
        """Make a node known on `$SRV`, and in the key-value registry as soon as there is one.

        Never fails: what does not work now is logged and tried again.
        """
        try:
            await self.srv.register(node, description)
        except Disconnected:
            log.debug("%s is shown on $SRV when the connection is back", node.service)
        except CallError as failure:
            log.warning("%s is not shown on $SRV: %s", node.service, failure)
        if await self.kv_usable():
            try:
                return await self.kv.register(node, description)
            except CallError as failure:
                self._fails(failure.message)
        self.kv.keep(node, description)
        return None

    async def deregister(self, node: Node) -> None:
        """Make a node unknown at once; never fails."""
        await asyncio.gather(self.kv.deregister(node), self.srv.deregister(node))

    # --- asking ---------------------------------------------------------------------------------

    async def service(self, name: str) -> ServiceRecord | None:
        """Find a service with all of its nodes; None if no node of it is up.

        Raises:
            Unavailable: The connection is down.
        """
        if await self.kv_usable():
            try:
                if (found := await self.kv.service(name)) is not None:
                    return found
            except CallError as failure:
                self._failed_asking(failure)
        return await self.srv.service(name)

    def _failed_asking(self, failure: CallError) -> None:
        if not isinstance(failure, Disconnected):
            self._fails(failure.message)

    async def services(self) -> list[ServiceRecord]:
        """List every service: what the key-value registry knows and who answers on `$SRV`.

        So services of other frameworks are shown, and nodes that hang.

        Raises:
            Unavailable: The connection is down.
        """
        known, answered = await asyncio.gather(self._known(), self.srv.services())
        return merge(known, answered)

    async def _known(self) -> list[ServiceRecord]:
        if not await self.kv_usable():
            return []
        try:
            return await self.kv.services()
        except CallError as failure:
            self._failed_asking(failure)
            return []

    async def lookup(self, service: str) -> dict[str, str]:
        """Find out within 50 ms what a service has; see `SrvRegistry.lookup`."""
        return await self.srv.lookup(service)

    async def stats(self, service: str | None = None) -> list[NodeStats]:
        """Ask nodes what they have done so far; see `SrvRegistry.stats`."""
        return await self.srv.stats(service)

    async def stream_subjects(self) -> list[str] | None:
        """List the subjects that streams keep; None if nobody can tell. Never fails."""
        try:
            return await self.kv.jetstream.stream_subjects() if await self.kv_usable() else None
        except BusmicroError as failure:
            log.debug("nobody tells which subjects streams keep: %s", failure)
            return None

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Change]]:
        """Hear of everyone who is there, then of every change; see `Registry.watch`.

        What tells is chosen on entering, and stays; while it has nothing to go by, what was seen
        last stays too.
        """
        async with AsyncExitStack() as stack:
            yield await self._enter_watch(stack)

    async def _enter_watch(self, stack: AsyncExitStack) -> AsyncIterator[Change]:
        if await self.kv_usable():
            try:
                return await stack.enter_async_context(self.kv.watch())
            except CallError as failure:
                self._failed_asking(failure)
        return await stack.enter_async_context(self.srv.watch())

    async def close(self) -> None:
        """Deregister what was registered here and end every watcher."""
        await asyncio.gather(self.kv.close(), self.srv.close())


def merge(known: list[ServiceRecord], answered: list[ServiceRecord]) -> list[ServiceRecord]:
    """Put two lists together; what the first knows of a node wins.

    Args:
        known: What the key-value registry knows.
        answered: Who answered on `$SRV`.

    Returns:
        Every service once, by name, its nodes by id.
    """
    by_name: dict[str, ServiceRecord] = {record.name: record for record in answered}
    for record in known:
        other = by_name.get(record.name) or ServiceRecord(name=record.name)
        nodes = {node.id: node for node in (*other.nodes, *record.nodes)}
        by_name[record.name] = ServiceRecord(
            name=record.name,
            nodes=tuple(nodes[node] for node in sorted(nodes)),
            descriptions={**other.descriptions, **record.descriptions},
        )
    return [by_name[name] for name in sorted(by_name)]
