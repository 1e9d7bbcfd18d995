"""Stores that remember which events have been handled, so that none has its effect twice.

A store is asked before a handler runs, and remembers after it ran.  What makes the effect happen
once, whatever dies in between, is that both are one transaction: `SqliteStore` has it, and a store
of your own database is a few lines, because `EffectStore` is one method.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from busmicro.clock import SYSTEM_CLOCK, Clock
from busmicro.errors import SetupError, Unavailable

if TYPE_CHECKING:
    import sqlite3

R = TypeVar("R")

_MONTH: Final = 30 * 86_400.0
_TIDY_EVERY: Final = 3_600.0
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS busmicro_handled "
    "(id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID"
)
_INDEX: Final = "CREATE INDEX IF NOT EXISTS busmicro_handled_at ON busmicro_handled (at)"


class EffectStore(Protocol):
    """Remembers what was handled, together with what the handler did."""

    def once(self, key: str) -> AbstractAsyncContextManager[bool]:
        """Surround the handling of one event.

        Entering tells whether `key` was not handled before. Leaving without an error remembers it,
        in the same transaction as the handler's own writes; leaving with an error forgets both.
        """
        ...


class MemoryStore:
    """Remembers in this process: enough for effects that live and die with it.

    Args:
        most: How many events it remembers, 1 or more; the oldest is forgotten first.

    Raises:
        SetupError: `most` is out of range.
    """

    def __init__(self, most: int = 100_000) -> None:
        if most < 1:
            raise SetupError(f"MemoryStore(most={most}): say 1 or more")
        self._most = most
        self._handled: dict[str, None] = {}
        self._running: dict[str, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._handled)

    @asynccontextmanager
    async def once(self, key: str) -> AsyncIterator[bool]:
        """Surround the handling of one event; a second delivery of it waits for the first."""
        while (running := self._running.get(key)) is not None:
            await running.wait()
        if key in self._handled:
            yield False
            return
        ended = self._running[key] = asyncio.Event()
        try:
            yield True
            self._remember(key)
        finally:
            del self._running[key]
            ended.set()

    def _remember(self, key: str) -> None:
        self._handled[key] = None
        if len(self._handled) > self._most:
            del self._handled[next(iter(self._handled))]


class SqliteStore:
    """Remembers in an SQLite database, in one transaction with what the handler writes there.

    A handler writes with `await store.execute(…)`. Several processes may share the file. Whoever
    handles an event has the only right to write, so events take turns, in all processes: keep such
    handlers short. It works in a thread of its own and never holds up the event loop.

    Args:
        path: The file, made on first use, with a table `busmicro_handled`. It is switched to
            SQLite's write-ahead log, which needs a local file system.
        timeout: Seconds to wait for another process to finish its turn, more than 0.
        keep: Seconds for which an event is remembered; longer than its stream keeps it.
        clock: Where time comes from.

    Raises:
        SetupError: An argument is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        timeout: float = 30.0,
        keep: float = _MONTH,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if timeout <= 0 or keep <= 0:
            raise SetupError(
                f"SqliteStore(timeout={timeout}, keep={keep}): say seconds, more than 0"
            )
        self._path = str(path)
        self._timeout = timeout
        self._keep = keep
        self._clock = clock
        self._tidy_at = 0.0
        self._database: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._turn = asyncio.Lock()
        self._inside: contextvars.ContextVar[_Transaction | None] = contextvars.ContextVar(
            "busmicro_transaction", default=None
        )

    @asynccontextmanager
    async def once(self, key: str) -> AsyncIterator[bool]:
        """Surround the handling of one event with a transaction.

        Raises:
            SetupError: This code runs inside another turn, for which it would wait for ever.
            Unavailable: Other processes did not let go of the database in time; nothing was done.
        """
        if (outside := self._inside.get()) is not None and outside.open:
            raise SetupError("once(store) wraps this handler twice with one store: leave one out")
        async with self._turn:
            transaction = _Transaction()
            outer = self._inside.set(transaction)
            try:
                transaction.open = await self._in_thread(lambda: self._begin(key))
                yield transaction.open
                transaction.open = False
                await self._in_thread(self._commit)
            except BaseException:
                transaction.open = False
                await self._in_thread(self._roll_back)
                raise
            finally:
                self._inside.reset(outer)

    async def execute(
        self, sql: str, parameters: Sequence[object] = ()
    ) -> list[tuple[object, ...]]:
        """Run a statement of the handler's own, in the transaction of its event.

        Args:
            sql: One statement, with `?` for parameters.
            parameters: What stands for them.

        Returns:
            The rows, for a statement that has some.

        Raises:
            SetupError: This code does not run in a handler that `once(store)` wraps.
            sqlite3.Error: What SQLite says of the statement.
        """
        database = self.connection
        return await self._in_thread(lambda: database.execute(sql, parameters).fetchall())

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection, inside a handler; it blocks, and must be left uncommitted.

        Raises:
            SetupError: This code does not run in a handler that `once(store)` wraps.
        """
        inside = self._inside.get()
        if inside is None or not inside.open or self._database is None:
            raise SetupError(
                "no event is being handled here: use the store inside a handler that once(store) "
                "wraps, and let the handler wait for whatever uses it"
            )
        return self._database

    async def close(self) -> None:
        """Close the file, after the turn that runs; the store opens it again when it is used."""
        async with self._turn:
            if self._thread is not None:
                await self._in_thread(self._close)
                self._thread.shutdown(wait=False)
                self._thread = None

    async def _in_thread(self, work: Callable[[], R]) -> R:
        """Run `work` in the store's thread; if the caller is cancelled it is done all the same.

        It is one thread, and does things in the order in which it got them: a rollback comes before
        the next transaction even if nobody could wait for it any more.
        """
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="busmicro-effects")
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._thread, work))

    # --- in the thread --------------------------------------------------------------------------

    def _begin(self, key: str) -> bool:
        database = self._database or self._open()
        self._lock(database)
        now = self._clock.wall().timestamp()
        if self._clock.now() >= self._tidy_at:
            database.execute("DELETE FROM busmicro_handled WHERE at < ?", (now - self._keep,))
            self._tidy_at = self._clock.now() + _TIDY_EVERY
        marked = database.execute(
            "INSERT OR IGNORE INTO busmicro_handled (id, at) VALUES (?, ?)", (key, now)
        )
        if not marked.rowcount:
            database.commit()
        return bool(marked.rowcount)

    def _lock(self, database: sqlite3.Connection) -> None:
        import sqlite3  # noqa: PLC0415 - as in `_open`

        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as failure:
            if failure.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            raise Unavailable(
                f"{self._path} was in use by other processes for {self._timeout:g} s: make the "
                "handlers that use it shorter, or raise the store's timeout",
                not_run=True,
            ) from failure

    def _commit(self) -> None:
        if self._database is not None:
            self._database.commit()

    def _roll_back(self) -> None:
        if self._database is not None:
            self._database.rollback()

    def _open(self) -> sqlite3.Connection:
        import sqlite3  # noqa: PLC0415 - start-up time: most services never need it

        database = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            # With the log, writing is four times as fast, and readers stay out of the way.
            database.execute("PRAGMA journal_mode = WAL")
            self._lock(database)
            database.execute(_TABLE)
            database.execute(_INDEX)
            database.commit()
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


class _Transaction:
    """One event's right to write; it ends before tasks that the handler left behind do."""

    __slots__ = ("open",)

    def __init__(self) -> None:
        self.open = False
