"""The checker of operations finds every broken rule: one that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.history import Operations, logged


def good() -> Operations:
    """A run in which all went as it may: some are ok, some failed, of two nobody knows."""
    values = [f"p0-{number}" for number in range(10)]
    return Operations(
        invoked=list(values),
        ok=values[:6],
        failed=values[6:8],
        unknown=values[8:],
        begun=[*values[:6], "p0-8"],
        done=[*values[:6], "p0-8"],
    )


def test_good_run_is_clean(tmp_path: Path):
    """What is unknown may have been done or not, and neither is a fault."""
    assert good().faults() == {}
    good().must_be_clean(where=tmp_path, seed=1)


def lose(run: Operations) -> None:
    run.done.remove("p0-3")


def do_what_failed(run: Operations) -> None:
    run.begun.append("p0-7")


def do_twice(run: Operations) -> None:
    run.begun.append("p0-3")


def make_up(run: Operations) -> None:
    run.begun.append("p9-9")


def answer_nobody(run: Operations) -> None:
    run.ok.append("p9-9")
    run.done.append("p9-9")


def leave_open(run: Operations) -> None:
    run.unknown.remove("p0-9")


def end_twice(run: Operations) -> None:
    run.unknown.append("p0-3")


def invoke_twice(run: Operations) -> None:
    run.invoked.append("p0-3")


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (lose, "ok and not done"),
        (do_what_failed, "failed and done"),
        (do_twice, "done twice"),
        (make_up, "made up"),
        (answer_nobody, "made up"),
        (leave_open, "without an outcome"),
        (end_twice, "with two outcomes"),
        (invoke_twice, "with two outcomes"),
    ],
)
def test_every_broken_rule_is_found(
    plant: Callable[[Operations], None], fault: str, tmp_path: Path
):
    """Each kind of fault is found, alone, named with its value, the logs and the seed."""
    run = good()
    plant(run)

    assert list(run.faults()) == [fault]
    with pytest.raises(AssertionError, match=r"p(0-[379]|9-9)") as failed:
        run.must_be_clean(where=tmp_path, seed=17)
    assert str(tmp_path) in str(failed.value)
    assert "seed: 17" in str(failed.value)


def test_twice_is_no_fault_where_it_is_allowed():
    """Who may ask twice may have it done twice."""
    run = good()
    do_twice(run)
    run.twice_allowed = True

    assert run.faults() == {}
    assert run.done_twice() == ["p0-3"]


def test_empty_run_is_a_fault():
    """A run in which nothing happened does not pass for a good one."""
    assert list(Operations().faults()) == ["nothing happened"]


def test_line_cut_off_by_a_kill_is_left_out(tmp_path: Path):
    """A log is read whole, but for the line that was being written."""
    (tmp_path / "n0.log").write_text("began a-1 1.5\nended a-1 1.6\nbegan a-")
    assert list(logged(tmp_path / "n0.log")) == [["began", "a-1", "1.5"], ["ended", "a-1", "1.6"]]
