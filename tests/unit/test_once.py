"""An event has its effect once, however often it is delivered and whatever dies in between."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.call import Call, Kind, Side, Spec, compose
from busmicro.errors import Internal, SetupError, Unavailable
from busmicro.testing import FakeClock, settle
from busmicro.wrappers import EffectStore, MemoryStore, Recover, SqliteStore, once

SPEC = Spec(service="billing", endpoint="orders.paid", kind=Kind.EVENT, side=Side.HANDLER)


def event(
    order: str = "order-17", *, attempt: int = 1, group: str = "billing", message: object = "paid"
) -> Call:
    """A delivery of an event, as the subscription makes it."""
    ack = f"$JS.ACK.ORDERS.{group}-orders-paid.{attempt}.17.{attempt}.1700000000000000000.0"
    return Call(SPEC, message, headers={"ce-id": order, "ce-source": "/shop"}, ack=ack.encode())


class Effects:
    """What a handler has done; fails as often as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.done: list[str] = []
        self.failures = failures

    async def __call__(self, call: Call) -> object:
        if self.failures:
            self.failures -= 1
            raise ZeroDivisionError
        self.done.append(call.headers["ce-id"])
        return "done"


@pytest.fixture(params=["memory", "sqlite"])
async def store(request, tmp_path: Path) -> AsyncIterator[EffectStore]:
    """Both stores keep the same promises."""
    if request.param == "memory":
        yield MemoryStore()
        return
    sqlite = SqliteStore(tmp_path / "effects.db")
    yield sqlite
    await sqlite.close()


async def test_second_delivery_has_no_effect(store: EffectStore):
    """An event that comes again, because its acknowledgement was lost, is not handled again."""
    effects = Effects()
    handle = compose([once(store)], effects)

    first = await handle(event())
    again = await handle(event(attempt=2))

    assert effects.done == ["order-17"]
    assert (first, again) == ("done", None)


async def test_different_events_do_not_stand_in_each_others_way(store: EffectStore):
    """Only the same event is skipped."""
    effects = Effects()
    handle = compose([once(store)], effects)

    for order in ("a", "b", "a", "c"):
        await handle(event(order))

    assert effects.done == ["a", "b", "c"]


async def test_groups_share_a_store(store: EffectStore):
    """What billing has handled, shipping has not."""
    effects = Effects()
    handle = compose([once(store)], effects)

    for group in ("billing", "shipping", "billing"):
        await handle(event(group=group))

    assert effects.done == ["order-17", "order-17"]


async def test_failed_event_is_handled_when_it_comes_again(store: EffectStore):
    """A handler that fails has handled nothing: the next delivery runs it."""
    effects = Effects(failures=2)
    handle = compose([once(store), Recover()], effects)

    for attempt in (1, 2):
        with pytest.raises(Internal):
            await handle(event(attempt=attempt))
    await handle(event(attempt=3))
    await handle(event(attempt=4))

    assert effects.done == ["order-17"]


async def test_cancelled_event_is_handled_when_it_comes_again(store: EffectStore):
    """A handler that is cancelled, by its timeout or by the end of the service, may run again."""
    entered = asyncio.Event()

    async def hang(_call: Call) -> object:
        entered.set()
        await asyncio.Event().wait()
        return None

    work = asyncio.get_running_loop().create_task(run(compose([once(store)], hang), event()))
    await entered.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work

    effects = Effects()
    await compose([once(store)], effects)(event(attempt=2))
    assert effects.done == ["order-17"]


@pytest.mark.parametrize("fails", [False, True])
async def test_second_of_two_at_once_waits_for_the_first(store: EffectStore, fails: bool):
    """Of two deliveries at the same moment one runs; the other only if that one failed."""
    go = asyncio.Event()
    runs: list[int] = []

    async def slow(call: Call) -> object:
        delivery = call.delivery
        assert delivery is not None
        runs.append(delivery.attempt)
        await go.wait()
        if fails and delivery.attempt == 1:
            raise ZeroDivisionError
        return None

    handle = compose([once(store)], slow)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(quiet(handle(event())))
        while not runs:
            await asyncio.sleep(0)
        group.create_task(quiet(handle(event(attempt=2))))
        await settle()
        assert runs == [1]
        go.set()

    assert runs == ([1, 2] if fails else [1])


@pytest.mark.parametrize(
    "call",
    [
        Call(SPEC, "a core event", headers={"ce-id": "1"}),
        Call(SPEC, payload=b"[1]", decode=lambda _payload: [1]),
        Call(Spec(service="s", endpoint="e", kind=Kind.UNARY, side=Side.HANDLER), ["a", "call"]),
        Call(Spec(service="s", endpoint="e", kind=Kind.EVENT, side=Side.CLIENT), ["published"]),
    ],
    ids=["core event", "core event that is a list", "call", "publisher"],
)
async def test_what_no_stream_keeps_passes(call: Call):
    """Calls and core events are delivered once at most; `once` leaves them alone."""
    store = MemoryStore()
    seen: list[Call] = []

    async def handle(call: Call) -> object:
        seen.append(call)
        return "reply"

    replies = [await compose([once(store)], handle)(call) for _ in range(2)]

    assert replies == ["reply", "reply"]
    assert len(store) == 0


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(1, 5))
def test_memory_is_bounded_and_forgets_the_oldest(orders: list[int], most: int):
    """However many events come, `MemoryStore` remembers so many, and the latest of them."""
    store = MemoryStore(most)
    effects = Effects()

    async def scenario() -> None:
        handle = compose([once(store)], effects)
        for order in orders:
            latest = effects.done[-most:]
            before = len(effects.done)
            await handle(event(str(order)))
            assert (len(effects.done) == before) == (str(order) in latest)
            assert len(store) <= most

    asyncio.run(scenario())


@pytest.mark.parametrize("wrong", [{"timeout": 0}, {"keep": -1}])
def test_senseless_numbers_are_refused(wrong: dict[str, float], tmp_path: Path):
    """A wrong number is told at construction, and no file is made."""
    with pytest.raises(SetupError, match="more than 0"):
        SqliteStore(tmp_path / "effects.db", **wrong)
    with pytest.raises(SetupError, match="1 or more"):
        MemoryStore(0)
    assert list(tmp_path.iterdir()) == []


# --- the database -------------------------------------------------------------------------------


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store with a table of the user's beside its own."""
    path = tmp_path / "effects.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE paid (id TEXT)")
    store = SqliteStore(path)
    yield store
    await store.close()


def paid(tmp_path: Path) -> list[str]:
    """What somebody else sees in the database."""
    with contextlib.closing(sqlite3.connect(tmp_path / "effects.db")) as database:
        return [row[0] for row in database.execute("SELECT id FROM paid ORDER BY rowid")]


def pays(store: SqliteStore, *, fails: bool = False) -> Callable[[Call], Awaitable[object]]:
    async def handle(call: Call) -> object:
        await store.execute("INSERT INTO paid VALUES (?)", (call.headers["ce-id"],))
        if fails:
            raise ZeroDivisionError
        return await store.execute("SELECT count(*) FROM paid")

    return handle


async def test_handlers_writes_are_kept_with_the_mark(sqlite: SqliteStore, tmp_path: Path):
    """A handler's own writes are in the database when the event is acknowledged."""
    handle = compose([once(sqlite)], pays(sqlite))

    assert await handle(event("a")) == [(1,)]
    assert await handle(event("b")) == [(2,)]
    assert await handle(event("a", attempt=2)) is None

    assert paid(tmp_path) == ["a", "b"]


async def test_handlers_writes_go_with_its_failure(sqlite: SqliteStore, tmp_path: Path):
    """What a handler wrote before it failed is gone, so that the next delivery can start over."""
    with pytest.raises(ZeroDivisionError):
        await compose([once(sqlite)], pays(sqlite, fails=True))(event())
    assert paid(tmp_path) == []

    await compose([once(sqlite)], pays(sqlite))(event(attempt=2))
    assert paid(tmp_path) == ["order-17"]


async def test_store_can_be_closed_and_used_again(sqlite: SqliteStore, tmp_path: Path):
    """A service that stops and starts again remembers what it has handled."""
    handle = compose([once(sqlite)], pays(sqlite))
    await handle(event())
    await sqlite.close()
    await handle(event(attempt=2))

    assert paid(tmp_path) == ["order-17"]


async def test_connection_is_there_for_what_execute_cannot_do(sqlite: SqliteStore, tmp_path: Path):
    """`store.connection` writes in the same transaction."""

    async def handle(_call: Call) -> object:
        sqlite.connection.executemany("INSERT INTO paid VALUES (?)", [("a",), ("b",)])
        raise ZeroDivisionError

    await quiet(compose([once(sqlite)], handle)(event()))

    assert paid(tmp_path) == []


async def test_writing_outside_a_handler_is_refused(sqlite: SqliteStore):
    """What would slip into another event's transaction is an error that names the fix."""
    with pytest.raises(SetupError, match="inside a handler"):
        await sqlite.execute("SELECT 1")

    late: list[asyncio.Task[object]] = []
    ended = asyncio.Event()

    async def straggler() -> object:
        await ended.wait()
        return await sqlite.execute("INSERT INTO paid VALUES ('late')")

    async def handle(_call: Call) -> object:
        late.append(asyncio.get_running_loop().create_task(straggler()))
        return None

    await compose([once(sqlite)], handle)(event())
    ended.set()
    with pytest.raises(SetupError, match="inside a handler"):
        await late[0]


async def test_wrapping_twice_is_an_error_and_no_deadlock(sqlite: SqliteStore):
    """The same store twice around one handler would wait for itself."""
    handle = compose([once(sqlite), once(sqlite)], Effects())

    with pytest.raises(SetupError, match="twice"):
        await handle(event())


async def test_lists_are_refused(sqlite: SqliteStore):
    """A handler of lists is told to take one event at a time."""
    effects = Effects()

    with pytest.raises(SetupError, match="one event at a time"):
        await compose([once(sqlite)], effects)(Call(SPEC, ["a", "b"]))
    assert effects.done == []


async def test_event_that_is_a_list_is_one_event(sqlite: SqliteStore):
    """A topic of lists has an id for each list, so its handler may be wrapped."""
    effects = Effects()
    handle = compose([once(sqlite)], effects)

    for attempt in (1, 2):
        await handle(event(attempt=attempt, message=["a", "b"]))

    assert effects.done == ["order-17"]


async def test_busy_database_holds_up_nobody_else(tmp_path: Path):
    """While another process writes, the event loop runs; when it takes too long, that is said."""
    store = SqliteStore(tmp_path / "effects.db", timeout=0.2)
    await compose([once(store)], Effects())(event("first"))
    with contextlib.closing(
        sqlite3.connect(tmp_path / "effects.db", isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        turns = 0
        work = asyncio.get_running_loop().create_task(
            run(compose([once(store)], Effects()), event())
        )
        while not work.done():
            await asyncio.sleep(0.001)
            turns += 1
        with pytest.raises(Unavailable, match=r"in use by other processes for 0.2 s"):
            await work
        other.execute("COMMIT")

    effects = Effects()
    await compose([once(store)], effects)(event(attempt=2))
    await store.close()
    assert effects.done == ["order-17"]
    assert turns > 20


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_cancelled_at_any_moment_it_stays_whole(
    sqlite: SqliteStore, tmp_path: Path, turns: int
):
    """Wherever a cancellation strikes, effect and mark are both there or both not."""
    handle = compose([once(sqlite)], pays(sqlite))
    for number in range(20):
        order = f"{turns}-{number}"
        work = asyncio.get_running_loop().create_task(run(handle, event(order)))
        await settle(turns)
        if number % 2:
            await asyncio.sleep(number / 10_000)
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await handle(event(order, attempt=2))

    assert paid(tmp_path) == [f"{turns}-{number}" for number in range(20)]


async def test_old_marks_are_forgotten(tmp_path: Path):
    """The table of handled events does not grow for ever."""
    clock = FakeClock()
    store = SqliteStore(tmp_path / "effects.db", keep=7 * 86_400.0, clock=clock)
    handle = compose([once(store)], Effects())
    for day in range(20):
        await handle(event(f"day-{day}"))
        await clock.advance(86_400.0)
    await handle(event("last"))
    await store.close()

    with contextlib.closing(sqlite3.connect(tmp_path / "effects.db")) as database:
        left = database.execute("SELECT count(*) FROM busmicro_handled").fetchone()[0]
    assert left <= 9


async def test_store_works_in_one_thread_and_leaves_none(sqlite: SqliteStore, until):
    """One store works in one thread, however many events come at once; closed, it has none."""
    before = set(threading.enumerate())
    handle = compose([once(sqlite)], Effects())
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(run(handle, event(str(number))))
    assert len(set(threading.enumerate()) - before) == 1

    await sqlite.close()
    await until(lambda: set(threading.enumerate()) <= before)


WORKER = """
import asyncio, os, signal, sys
from busmicro.call import Call, Kind, Side, Spec, compose
from busmicro.wrappers import SqliteStore, once

SPEC = Spec(service="billing", endpoint="orders.paid", kind=Kind.EVENT, side=Side.HANDLER)

async def main(path, dies_at, dies):
    store = SqliteStore(path)
    async def pay(call):
        await store.execute("INSERT INTO paid VALUES (?)", (call.headers["ce-id"],))
        if dies == "before" and call.headers["ce-id"] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
    handle = compose([once(store)], pay)
    for number in range(200):
        ack = b"$JS.ACK.ORDERS.billing.1.17.1.1700000000000000000.0"
        await handle(Call(SPEC, "", headers={"ce-id": str(number)}, ack=ack))
        if dies == "after" and str(number) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("dies", ["before", "after"])
async def test_killed_processes_leave_no_half_effect(
    tmp_path: Path, start_program, sqlite: SqliteStore, dies: str
):
    """Two processes are killed in the midst of it, three share the rest: each effect, once."""
    path = str(tmp_path / "effects.db")

    async def ends(*workers) -> list[int]:
        return [await asyncio.to_thread(worker.wait, 30) for worker in workers]

    for dies_at in ("30", "60"):
        assert await ends(start_program("-c", WORKER, path, dies_at, dies)) == [-signal.SIGKILL]
    assert (
        await ends(*(start_program("-c", WORKER, path, "none", dies) for _ in range(3))) == [0] * 3
    )

    assert sorted(paid(tmp_path), key=int) == [str(number) for number in range(200)]


async def test_processes_may_make_the_same_file_at_once(tmp_path: Path, start_program):
    """Services that start together do not fail because the file is not there yet."""
    path = str(tmp_path / "new.db")
    worker = WORKER.replace("INSERT INTO paid VALUES (?)", "SELECT ?")

    workers = [start_program("-c", worker, path, "none", "never") for _ in range(4)]

    assert [await asyncio.to_thread(worker.wait, 30) for worker in workers] == [0] * 4


async def run(handle: Callable[[Call], Awaitable[object]], call: Call) -> object:
    return await handle(call)


async def quiet(work: Awaitable[object]) -> None:
    with contextlib.suppress(ZeroDivisionError):
        await work
