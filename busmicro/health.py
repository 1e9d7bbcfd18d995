"""Is this node well, and should it take requests while it is not?

A service says what it needs by checks, small async functions that run by themselves every few
seconds, never on the way of a request.  While a critical one fails, the node leaves the queue
group: it takes no requests that another node may answer, and keeps those that are meant for it.
But it stays as long as no other node is well, because an ill node is better than none::

    serving ──a critical check fails──► failing ──another node serves──► away
       ▲                                │     ▲                            │
       └────────────passes──────────────┘     └────no other node serves────┤
       └────────────────────────────passes─────────────────────────────────┘

A node says `failing` before it asks the others, so of two that fall ill at once at most one takes
the other for well.  One that is away goes on asking, and comes back when there is nobody else.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pydantic import BaseModel

from busmicro.client import Client
from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import BusmicroError, CallError, SetupError
from busmicro.rpc import HEALTH
from busmicro.tasks import Tasks

log = logging.getLogger("busmicro.health")

CheckFunction = Callable[[], Awaitable[object]]

SERVING: Final = "serving"
FAILING: Final = "failing"
AWAY: Final = "away"
HEALTH_KEY: Final = "health"
"""What the metadata of a node that is not well says how it is under."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST: Final = 86_400.0
_ASK_EVERY: Final = 1.0
_ASK_FOR: Final = 1.0
_ASK_AT_ONCE: Final = 5
_LAST_WORDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that a service needs in order to be well."""

    name: str
    """What is checked."""
    function: CheckFunction
    """Checks it: fails if it raises or returns False."""
    timeout: float = 1.0
    """Seconds it may take."""
    critical: bool = True
    """Should the node take no requests while it fails?"""
    interval: float = 10.0
    """Seconds between two runs."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        said = f"check {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise SetupError(f"{said}: a name has 1 to 64 letters, digits, '_' or '-'")
        if not inspect.iscoroutinefunction(self.function):
            raise SetupError(f"{said} is not async: write 'async def'")
        if inspect.signature(self.function).parameters:
            raise SetupError(f"{said} must be a function without parameters")
        for option, seconds in (("timeout", self.timeout), ("interval", self.interval)):
            if not 0 < seconds <= _LONGEST:
                raise SetupError(f"{said}: {option}={seconds}: say seconds, more than 0")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a check went when it last ran."""

    check: Check
    """Which."""
    passed: bool
    """Did it pass?"""
    error: str
    """Why not; what may hold secrets stands only in the log."""
    took: float
    """Seconds it took."""
    at: float
    """When it ended, in seconds of the clock."""


class Checks:
    """The checks of a service, in the order they were added."""

    def __init__(self) -> None:
        self._by_name: dict[str, Check] = {}

    def __iter__(self) -> Iterator[Check]:
        return iter(self._by_name.values())

    def add(self, check: Check) -> None:
        """Add one.

        Raises:
            SetupError: There is one of this name.
        """
        if check.name in self._by_name:
            raise SetupError(f"there is a check {check.name!r} already: give one another name")
        self._by_name[check.name] = check


class CheckRunner:
    """Runs checks again and again, each in a task of its own, and knows how they went.

    Args:
        checks: What to run.
        clock: Where time comes from.
    """

    def __init__(self, checks: Sequence[Check], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.outcomes: dict[str, Outcome] = {}
        """By name, of the checks that have run."""
        self.changed = asyncio.Event()
        """Set when a check passes that failed before, or the other way round."""
        self._checks = tuple(checks)
        self._clock = clock
        self._tasks = Tasks()
        self._running = Tasks()
        self._overdue: dict[str, asyncio.Task[None]] = {}

    @property
    def failing(self) -> list[str]:
        """The names of the critical checks that fail."""
        outcomes = self.outcomes.values()
        return [o.check.name for o in outcomes if o.check.critical and not o.passed]

    async def begin(self) -> None:
        """Run every check once, side by side, then keep running them."""
        await asyncio.gather(*map(self._run, self._checks))
        for check in self._checks:
            self._tasks.spawn(self._keep_running(check), name=f"check {check.name}")

    async def end(self) -> None:
        """Run none any more; one that cannot be cancelled is left behind after a second."""
        await self._tasks.cancel()
        self._running.end_all()
        await self._running.wait(_LAST_WORDS)

    async def _keep_running(self, check: Check) -> None:
        while True:
            await self._clock.sleep(check.interval)
            await self._run(check)

    async def _run(self, check: Check) -> None:
        """Run a check for as long as it may take; one that cannot be cancelled stays failed."""
        overdue = self._overdue.pop(check.name, None)
        if overdue is not None and not overdue.done():
            self._overdue[check.name] = overdue
            return
        began = self._clock.now()
        errors: list[str] = []
        work = self._running.spawn(_ask(check, errors), name=f"check {check.name} runs")
        late = self._tasks.spawn(self._clock.sleep(check.timeout), name=f"check {check.name} time")
        await asyncio.wait({work, late}, return_when=asyncio.FIRST_COMPLETED)
        late.cancel()
        if not work.done():
            work.cancel()
            self._overdue[check.name] = work
            errors = [f"took longer than {check.timeout:g} s"]
        now = self._clock.now()
        self._note(Outcome(check, not errors, "".join(errors[:1]), now - began, now))

    def _note(self, outcome: Outcome) -> None:
        """Keep an outcome; say what has changed."""
        name = outcome.check.name
        before = self.outcomes.get(name)
        self.outcomes[name] = outcome
        if before is None and outcome.passed:
            return
        if before is None or before.passed != outcome.passed:
            if outcome.passed:
                log.info("check %s passes again", name)
            else:
                log.warning("check %s fails: %s", name, outcome.error)
            self.changed.set()


async def _ask(check: Check, errors: list[str]) -> None:
    """Run a check's function; put into the list why it fails."""
    try:
        if await check.function() is False:
            errors.append("it returned False")
    except CallError as failure:
        errors.append(str(failure))
    except Exception as failure:
        log.warning("check %s raised", check.name, exc_info=failure)
        errors.append(f"it raised {type(failure).__name__}; the log of the node says more")


# --- taking requests, or not --------------------------------------------------------------------


class QueueGroup(Protocol):
    """Where a node takes requests that any node may answer."""

    async def join(self) -> None:
        """Take them."""
        ...

    async def leave(self) -> None:
        """Take no more of them, lose none."""
        ...


class Standing:
    """Whether a node takes requests that others may answer, by how its checks go.

    Args:
        name: The node, for the log.
        runner: Knows how the checks go.
        group: What to leave and to join.
        another_serves: Tells whether another node is well and takes requests.
        announce: Tells the registry what this node has become.
        clock: Where time comes from.
    """

    def __init__(
        self,
        name: str,
        runner: CheckRunner,
        group: QueueGroup,
        *,
        another_serves: Callable[[], Awaitable[bool]],
        announce: Callable[[str], Awaitable[None]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.status = SERVING
        """`serving`, `failing` or `away`."""
        self._name = name
        self._runner = runner
        self._group = group
        self._another_serves = another_serves
        self._announce = announce
        self._clock = clock

    async def starts_away(self) -> bool:
        """Decide before the first request, when the checks have run once."""
        if self._runner.failing:
            self.status = FAILING
            if await self._helped():
                self.status = AWAY
            self._say()
        return self.status == AWAY

    async def keep(self) -> None:
        """Follow the checks until cancelled."""
        if self.status != SERVING:
            await self._announce(self.status)
        while True:
            if self.status == SERVING:
                await self._runner.changed.wait()
            else:
                await self._news_or_time()
            self._runner.changed.clear()
            try:
                await self.follow()
            except Exception:
                log.exception("%s could not follow its checks; it tries again", self._name)

    async def _news_or_time(self) -> None:
        """Wait for a check to change, or until it is time to ask the others again."""
        tasks = Tasks()
        news = tasks.spawn(_wait_for(self._runner.changed), name=f"{self._name} checks")
        time = tasks.spawn(self._clock.sleep(_ASK_EVERY), name=f"{self._name} asks again")
        try:
            await asyncio.wait({news, time}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.cancel()

    async def follow(self) -> None:
        """Do what follows from the checks as they stand."""
        was = self.status
        if not self._runner.failing:
            if was == AWAY:
                await self._group.join()
            self.status = SERVING
        else:
            if was == SERVING:
                self.status = FAILING  # said before the others are asked: see above
            helped = await self._helped()
            if helped and self.status == FAILING:
                self.status = AWAY
                await self._group.leave()
            elif not helped and self.status == AWAY:
                await self._group.join()
                self.status = FAILING
        if self.status != was:
            self._say()
            await self._announce(self.status)

    async def _helped(self) -> bool:
        try:
            return await self._another_serves()
        except BusmicroError as failure:
            log.debug("%s cannot ask other nodes: %s", self._name, failure)
            return self.status == AWAY  # nothing is known, so nothing changes

    def _say(self) -> None:
        because = ", ".join(self._runner.failing)
        if self.status == AWAY:
            log.warning("%s takes no requests that others can answer: %s", self._name, because)
        elif self.status == FAILING:
            log.warning("%s takes requests although %s fails: no other node is well",
                        self._name, because)  # fmt: skip
        else:
            log.info("%s is well and takes requests", self._name)


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


class _Said(BaseModel, defer_build=True):
    """What of another node's health matters here."""

    status: str


async def another_serves(client: Client, service: str, me: str) -> bool:
    """Tell whether another node of a service is well, by asking those that the registry knows.

    Args:
        client: Asks, best without wrappers.
        service: The service.
        me: The id of the node that wants to know.

    Raises:
        Unavailable: The connection is down.
    """
    record = await client.bus.discovery.service(service)
    nodes = [node.id for node in record.nodes if node.id != me] if record is not None else []
    random.shuffle(nodes)
    for start in range(0, len(nodes), _ASK_AT_ONCE):
        some = nodes[start : start + _ASK_AT_ONCE]
        if any(await asyncio.gather(*(_serves(client, service, node) for node in some))):
            return True
    return False


async def _serves(client: Client, service: str, node: str) -> bool:
    one = client.with_options(node=node, timeout=_ASK_FOR)
    try:
        return (await one.call(service, HEALTH.name, returns=_Said)).status == SERVING
    except CallError:
        return False
