"""A service: a name, what it handles, and its life in this process.

Start: connect (wait for NATS if need be) → `lifespan` → subscribe, pass a barrier → register.
Stop: deregister → unsubscribe, pass a barrier → finish what runs → `lifespan` ends → disconnect.
In this order no caller ever meets a node that cannot answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sys
from collections.abc import (
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from busmicro.bus import Bus
from busmicro.call import Wrapper
from busmicro.client import Client
from busmicro.endpoint import EndpointOptions, Function, options_of, public_methods
from busmicro.errors import BusmicroError, Disconnected, SetupError, exit_code
from busmicro.health import Check, CheckFunction, Checks
from busmicro.life import Life, Parts
from busmicro.pubsub import (
    PUBLISH_TIMEOUT,
    Cron,
    Durable,
    KeyOf,
    Stored,
    StoredMany,
    SubscribeOptions,
    Subscribers,
    Topic,
)
from busmicro.rpc import Endpoints
from busmicro.settings import Settings
from busmicro.signals import StopSignals
from busmicro.transport import (
    Subjects,
    check_node,
    check_service,
    check_version,
)
from busmicro.wrappers import RECOMMENDED, Recover, checked

log = logging.getLogger("busmicro.service")

F = TypeVar("F", bound=Function)
E = TypeVar("E", bound=Callable[..., Awaitable[object]])
C = TypeVar("C", bound=CheckFunction)
T = TypeVar("T")
_LOOK_FOR_STREAMS_EVERY = 60.0

Lifespan = Callable[["Service"], AbstractAsyncContextManager[object]]


class Service:
    """A service with its handlers; one instance of it in a process is a node.

    Args:
        name: What callers call it: letters, digits, `_` and `-`.
        version: Three numbers (semver).
        id: The node's id, unique among all nodes; left out, a random one.
        metadata: Shown to whoever looks the service up.
        url: Where NATS is; left out, `BUSMICRO_NATS_URL` or `nats://127.0.0.1:4222`.
        namespace: A prefix that keeps services with the same names apart on one server.
        client_wrappers: Put around every call that `service.client` makes; first is outermost.
        handler_wrappers: Put around every handler; first is outermost. `Recover` is always added
            innermost.
        lifespan: A function that takes the service and returns an async context manager, entered
            once connected and before the first request, left after the last one.
        defaults: Put the recommended wrappers (`busmicro.wrappers.RECOMMENDED`) around those given?
        settings: Everything else; left out, read from `BUSMICRO_*` at start.

    Raises:
        SetupError: A name or version breaks its rule.
    """

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.1.0",
        id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        url: str | None = None,
        namespace: str = "",
        client_wrappers: Sequence[Wrapper] = (),
        handler_wrappers: Sequence[Wrapper] = (),
        lifespan: Lifespan | None = None,
        defaults: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.name = check_service(name)
        self.version = check_version(version)
        self.id = check_node(id or secrets.token_hex(6))
        self.metadata = dict(metadata or {})
        namespace = Subjects(namespace).namespace
        self._given: dict[str, str | None] = {"nats_url": url, "namespace": namespace or None}
        self._settings = settings
        self._client_wrappers = [*map(checked, client_wrappers)]
        self._handler_wrappers = [*map(checked, handler_wrappers)]
        if defaults:
            self._client_wrappers[:0] = [make() for make in RECOMMENDED.client]
            self._handler_wrappers[:0] = [
                make() for make in RECOMMENDED.handler if make is not Recover
            ]
        self._lifespan = lifespan
        self._endpoints = Endpoints(self.name)
        self._subscribers = Subscribers(self.name)
        self._published: list[Topic[Any]] = []
        self._crons: list[Cron] = []
        self._checks = Checks()
        self._life: Life | None = None

    def __repr__(self) -> str:
        state = "serving" if self._life else "stopped"
        return f"<Service {self.name} {self.version} node={self.id} {state}>"

    # --- what it handles ------------------------------------------------------------------------

    @overload
    def rpc(self, function: F, /) -> F: ...

    @overload
    def rpc(
        self,
        name: str = "",
        /,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]: ...

    def rpc(
        self,
        function: F | str = "",
        /,
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> F | Callable[[F], F]:
        """Serve an async function; use it as `@service.rpc` or `@service.rpc("Greeter.Hello", …)`.

        Args:
            function: The function, or the endpoint's name, one word or two with a dot between.
            timeout: Seconds it may take when the caller does not say.
            idempotent: May it safely run twice?
            metadata: Shown to whoever looks the service up.

        Returns:
            The function, as it is.

        Raises:
            SetupError: The function is not async, lacks type hints, or the name is taken. The text
                names the function and the fix.
        """
        if not isinstance(function, str):
            self._add(function, EndpointOptions())
            return function
        options = EndpointOptions(
            name=function, timeout=timeout, idempotent=idempotent, metadata=dict(metadata or {})
        )

        def register(handler: F) -> F:
            self._add(handler, options)
            return handler

        return register

    def handle(self, handler: object) -> None:
        """Serve the public async methods of an object: endpoints `Class.method`.

        Args:
            handler: Any object; `endpoint_options` on a method says more of it.

        Raises:
            SetupError: It has no such methods, or one of them does not do.
        """
        cls = type(handler)
        methods = public_methods(cls)
        if not methods:
            raise SetupError(f"{cls.__name__} has no public async method to serve")
        for name in methods:
            method: Function = getattr(handler, name)
            self._add(method, options_of(method), prefix=cls.__name__)

    def _add(self, function: Function, options: EndpointOptions, *, prefix: str = "") -> None:
        self._must_not_serve("handlers")
        if options.name.startswith("Debug.") or prefix == "Debug":
            raise SetupError("endpoints that begin with 'Debug.' are the service's own")
        self._endpoints.add(function, options, prefix=prefix)

    def subscribe(
        self,
        topic: Topic[Any],
        *,
        group: str = "",
        concurrency: int = 16,
        key: KeyOf | None = None,
        timeout: float | None = None,
        waiting: int = 1024,
        **durable: Unpack[Durable],
    ) -> Callable[[E], E]:
        """Handle the events of a topic with an async function; use it as `@service.subscribe(…)`.

        The function takes the event, or a `list` of events; `call: Call` and the names in braces of
        the topic's subject if it wants them.

        Args:
            topic: What to listen to.
            group: Who shares the events: each goes to one node of the group. Left out, every node
                gets every event.
            concurrency: How many events a node handles at once.
            key: Makes the key of an event. Events with the same key are handled one after another,
                in order, a failed one before those behind it; with a stream and a group, by one
                node at a time.
            timeout: Seconds that the function may take for an event.
            waiting: How many events may wait on a node. Without a stream, more are dropped.
            durable: For topics with a stream; see `Durable`.

        Returns:
            The function, as it is.

        Raises:
            SetupError: The function is not async, takes something else, the group has a handler for
                this topic, or an option makes no sense. The text names the fix.
        """
        options = SubscribeOptions.of(
            topic,
            durable,
            group=group,
            concurrency=concurrency,
            key=key,
            timeout=timeout,
            waiting=waiting,
        )

        def register(handler: E) -> E:
            self._must_not_serve("handlers")
            self._subscribers.add(topic, handler, options)
            return handler

        return register

    def publishes(self, *topics: Topic[Any]) -> None:
        """Say which topics the service publishes to: their streams are made when it starts."""
        self._must_not_serve("topics")
        self._published.extend(topics)

    def cron(
        self, schedule: str, topic: Topic[T], event: T | None = None, *, name: str = ""
    ) -> Callable[[E], E]:
        """Have the server publish an event again and again, however many nodes there are.

        Used as `@service.cron("0 */5 * * * *", ticks)` the function handles the events, each on one
        node of the service; called plainly it only schedules them.

        Args:
            schedule: Six fields from seconds to weekdays, `@hourly` and the like, or `@every 5m`.
            topic: Where; it needs a stream, and nats-server 2.14 or newer.
            event: What; left out, the topic's type without arguments.
            name: What the schedule is called, one word; left out, the topic's subject.

        Returns:
            A decorator that leaves the function as it is.

        Raises:
            SetupError: No server would understand that, or the event needs arguments.
        """
        self._must_not_serve("schedules")
        said = name or topic.subject.replace(".", "-")
        if any(cron.name == said for cron in self._crons):
            raise SetupError(f"cron {said!r} is there already: give one of them another name=")
        self._crons.append(Cron.of(said, schedule, topic, event))
        return self.subscribe(topic, group=self.name)

    def check(
        self, name: str, *, timeout: float = 1.0, critical: bool = True, interval: float = 10.0
    ) -> Callable[[C], C]:
        """Check something that the service needs, again and again; use it as `@service.check(…)`.

        The function takes nothing, and fails if it raises or returns False. While a critical check
        fails, the node takes no requests that another node can answer; the last node that is well
        always does. `Debug.Health`, `$SRV.STATS` and `busmicro health` show how it went.

        Args:
            name: What is checked: letters, digits, `_` and `-`.
            timeout: Seconds that it may take, more than 0.
            critical: Should the node take no requests while it fails?
            interval: Seconds between two runs, more than 0; the first one is before the start.

        Returns:
            The function, as it is.

        Raises:
            SetupError: The function is not async, the name is taken, or an option makes no sense.
        """

        def register(function: C) -> C:
            self._must_not_serve("checks")
            self._checks.add(
                Check(
                    name=name,
                    function=function,
                    timeout=timeout,
                    critical=critical,
                    interval=interval,
                )
            )
            return function

        return register

    @property
    def endpoints(self) -> Endpoints:
        """What callers may call."""
        return self._endpoints

    @property
    def subscribers(self) -> Subscribers:
        """What handles events."""
        return self._subscribers

    @property
    def published(self) -> tuple[Topic[Any], ...]:
        """The topics it says it publishes to, those of its schedules too."""
        return (*self._published, *(cron.topic for cron in self._crons))

    def wrap_handler(self, *wrappers: Wrapper) -> None:
        """Put wrappers around every handler, inside those that are there."""
        self._must_not_serve("wrappers")
        self._handler_wrappers.extend(map(checked, wrappers))

    def wrap_client(self, *wrappers: Wrapper) -> None:
        """Put wrappers around every call of `service.client`, inside those that are there."""
        self._must_not_serve("wrappers")
        self._client_wrappers.extend(map(checked, wrappers))

    def _must_not_serve(self, what: str) -> None:
        if self._life is not None:
            raise SetupError(f"{self.name} serves already: add {what} before it starts")

    @property
    def said(self) -> dict[str, object]:
        """The settings that the code has chosen; everything else comes from the environment."""
        if self._settings is not None:
            return {name: getattr(self._settings, name) for name in self._settings.model_fields_set}
        given = {name: value for name, value in self._given.items() if value is not None}
        return {**given, "name": f"{self.name}/{self.id}"}

    def configure(self, settings: Settings) -> None:
        """Run with these settings, and with none from the environment."""
        self._must_not_serve("settings")
        self._settings = settings

    # --- its life -------------------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """A client on the service's own connection, while the service runs."""
        return self._running.client

    @property
    def bus(self) -> Bus:
        """The service's connection, while the service runs."""
        return self._running.bus

    @property
    def _running(self) -> Life:
        if self._life is None:
            raise SetupError(f"{self.name} does not run: start it first, or use Client()")
        return self._life

    def publish(
        self,
        topic: Topic[T],
        event: T,
        *,
        id: str | None = None,
        after: float | None = None,
        at: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> Coroutine[object, object, Stored | None]:
        """Publish an event; see `Client.publish`."""
        return self._running.client.publish(
            topic, event, id=id, after=after, at=at, headers=headers, timeout=timeout
        )

    async def publish_many(
        self,
        topic: Topic[T],
        events: Iterable[T] | AsyncIterable[T],
        *,
        id: Callable[[T], str] | None = None,
        in_flight: int = 1000,
        atomic: bool = False,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> StoredMany:
        """Publish many events; see `Client.publish_many`."""
        return await self._running.client.publish_many(
            topic, events, id=id, in_flight=in_flight, atomic=atomic, timeout=timeout
        )

    async def start(self, *, wait: bool = True, url: str | None = None) -> None:
        """Connect, serve and register; when this returns, callers are answered.

        Args:
            wait: Wait for a NATS that is not up yet, saying so every ten seconds.
            url: Where NATS is, in place of what the service was made with.

        Raises:
            SetupError: Settings that cannot work, or it runs already.
            Disconnected: No server answered (only without `wait`). Nothing is left behind.
            Unauthenticated: The server refuses the credentials.
            PermissionDenied: A subject may not be subscribed to; the text names it.
        """
        if self._life is not None:
            raise SetupError(f"{self.name} serves already: stop it before it starts again")
        more = {"nats_url": url} if url else {}
        settings = self._settings or Settings.load(**self.said)
        self._life = life = Life(self._parts(), settings.model_copy(update=more))
        try:
            await life.begin(wait=wait)
        except BaseException:
            self._life = None
            await life.end(grace=0.0)
            raise
        log.info("%s %s serves as node %s", self.name, self.version, self.id)

    def _parts(self) -> Parts:
        lifespan = self._lifespan
        return Parts(
            name=self.name,
            version=self.version,
            id=self.id,
            metadata=self.metadata,
            endpoints=self._endpoints.copy(),
            subscribers=self._subscribers.copy(),
            published=self.published,
            crons=tuple(self._crons),
            checks=tuple(self._checks),
            client_wrappers=tuple(self._client_wrappers),
            handler_wrappers=tuple(self._handler_wrappers),
            lifespan=None if lifespan is None else lambda: lifespan(self),
        )

    async def stop(self, *, grace: float | None = None) -> None:
        """Deregister, take no more requests, finish those that run, disconnect.

        Args:
            grace: Seconds that running requests get; left out, the setting `grace_period`.
        """
        life = self._life
        if life is None or life.ending:
            return
        try:
            await life.end(grace=life.bus.settings.grace_period if grace is None else grace)
        finally:
            self._life = None
        log.info("%s stopped", self.name)

    def end_running(self) -> None:
        """End every request that still runs, now; their callers are told `unavailable`."""
        if self._life is not None:
            self._life.server.end_all()
            self._life.subscriptions.end_all()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def serve(self, *, wait: bool = True) -> None:
        """Start, serve until SIGINT or SIGTERM, stop; a second signal ends what still runs."""
        with StopSignals(self.end_running) as signals:
            try:
                await self.start(wait=wait)
            except asyncio.CancelledError:
                if signals.received.is_set():
                    return
                raise
            signals.starting = None
            await signals.received.wait()
            await self.stop()

    def run(self, *, wait: bool = True) -> None:
        """Serve until SIGINT or SIGTERM, then exit; for the end of a script.

        Args:
            wait: Wait for a NATS that is not up yet; otherwise exit with code 3.

        Raises:
            SystemExit: With code 3 if no server answered, 2 for wrong settings, else the error's.
        """
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        try:
            with asyncio.Runner(loop_factory=fast_loop()) as runner:
                runner.run(self.serve(wait=wait))
        except BusmicroError as failure:
            sys.stderr.write(f"{self.name} cannot run: {failure}\n{_next_step(failure)}")
            raise SystemExit(exit_code(failure)) from failure


def fast_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it exists, else None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - not on every system
    except ImportError:
        return None
    return uvloop.new_event_loop


def _next_step(failure: BusmicroError) -> str:
    if isinstance(failure, Disconnected):
        return "try: busmicro server\n"
    return ""
