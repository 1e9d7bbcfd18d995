"""The checker of histories finds every kind of fault: one that cannot fail proves nothing."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.events.history import Ack, Delivered, History, Stored


def good(count: int = 20) -> History:
    """A run in which all went well, with some events delivered twice."""
    ids = [f"p0-{number}" for number in range(count)]
    return History(
        sent=list(ids),
        acked=[Ack(id_, at + 1, at * 0.1) for at, id_ in enumerate(ids)],
        stored=[Stored(at + 1, id_, f"shop:orders.placed:{id_}") for at, id_ in enumerate(ids)],
        delivered=[Delivered(id_, 1, 0.0, "c0") for id_ in ids] + [Delivered(ids[3], 2, 1.0, "c1")],
        handled=[*ids, ids[3]],
        effects=random.sample(ids, len(ids)),
    )


def test_good_history_is_clean(tmp_path: Path):
    """A run without faults passes, redeliveries and all."""
    history = good()

    assert history.faults() == {}
    assert history.redelivered == 1
    assert history.gap == pytest.approx(0.1)
    history.must_be_clean(where=tmp_path, seed=1)


def lose(history: History) -> None:
    del history.stored[7]
    history.handled.remove("p0-7")
    assert history.effects is not None
    history.effects.remove("p0-7")


def lose_another_in_its_place(history: History) -> None:
    history.stored[7] = Stored(100, "p0-7", "shop:orders.placed:p0-7")


def store_twice(history: History) -> None:
    history.stored.append(Stored(21, "p0-7", "shop:orders.placed:other"))


def store_msg_id_twice(history: History) -> None:
    history.stored[8] = Stored(9, "p0-8", "shop:orders.placed:p0-7")


def leave_unhandled(history: History) -> None:
    history.handled.remove("p0-7")


def do_twice(history: History) -> None:
    assert history.effects is not None
    history.effects.append("p0-7")


def leave_undone(history: History) -> None:
    assert history.effects is not None
    history.effects.remove("p0-7")


def make_up(history: History) -> None:
    history.sent.remove("p0-7")
    history.acked = [ack for ack in history.acked if ack.id != "p0-7"]


def handle_what_is_not_stored(history: History) -> None:
    history.handled.append("p9-9")


def give_up(history: History) -> None:
    history.acked = [ack for ack in history.acked if ack.id != "p0-7"]


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lose, "acknowledged and lost"),
        (lose_another_in_its_place, "acknowledged and lost"),
        (store_twice, "stored twice"),
        (store_msg_id_twice, "stored twice"),
        (leave_unhandled, "never handled"),
        (do_twice, "effect not once"),
        (leave_undone, "effect not once"),
        (make_up, "made up"),
        (handle_what_is_not_stored, "made up"),
        (give_up, "given up by their publisher"),
    ],
)
def test_every_planted_fault_is_found(plant: Callable[[History], None], fault: str, tmp_path: Path):
    """Each kind of fault is found, alone, named with its event, the logs and the seed."""
    history = good()
    plant(history)

    assert list(history.faults()) == [fault]
    with pytest.raises(AssertionError, match=r"(p0-[78]|p9-9)") as failed:
        history.must_be_clean(where=tmp_path, seed=17)
    assert str(tmp_path) in str(failed.value)
    assert "seed: 17" in str(failed.value)


def test_empty_history_is_a_fault():
    """A run in which nothing happened does not pass for a good one."""
    assert list(History().faults()) == ["nothing happened"]


def test_logs_are_read_whole(tmp_path: Path):
    """What programs write is what the checker sees; only a line cut off by a kill is left out."""
    (tmp_path / "p0.log").write_text(
        "sent p0-1\nsent p0-2\nacked p0-1 1 10.5\nfailed p0-2 PublishUnknown\nacked p0-2 2 12.0\n"
    )
    (tmp_path / "c0.log").write_text("delivered p0-1 1 10.6\nhandled p0-1\ndelivered p0-2 1 1")
    with sqlite3.connect(tmp_path / "effects.db") as database:
        database.execute("CREATE TABLE effects (id TEXT)")
        database.execute("INSERT INTO effects VALUES ('p0-1')")
    database.close()

    history = History()
    history.read_publisher(tmp_path / "p0.log")
    history.read_consumer(tmp_path / "c0.log")
    history.read_effects(tmp_path / "effects.db")

    assert history.sent == ["p0-1", "p0-2"]
    assert history.acked == [Ack("p0-1", 1, 10.5), Ack("p0-2", 2, 12.0)]
    assert history.failed == [("p0-2", "PublishUnknown")]
    assert history.delivered == [Delivered("p0-1", 1, 10.6, "c0")]
    assert history.handled == ["p0-1"]
    assert history.effects == ["p0-1"]
    assert history.gap == pytest.approx(1.5)
