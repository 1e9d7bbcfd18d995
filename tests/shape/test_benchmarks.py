"""The benchmarks work: figures are judged as they say, and a run leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.document import BEGIN, END, replaced
from benchmarks.rpc import MAIN
from benchmarks.table import Report, markdown, table

ROOT = Path(__file__).parent.parent.parent
RUN = [sys.executable, "-m", "benchmarks.run"]
SUBJECTS = "rpc,registry"
"""`make bench` is the test of the others, which take a minute."""
SECTIONS = (
    "Calls",
    "Calls, targets",
    "CPU of a call",
    "Registry",
)


def run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], check=False, cwd=ROOT, capture_output=True, text=True, timeout=230
    )


@pytest.mark.timeout(240)
def test_one_command_measures_and_ends_well(tmp_path: Path) -> None:
    """Every subject has its part of the table, also where a rival is not installed."""
    file = tmp_path / "figures.json"

    done = run_to_its_end("--quick", "--only", SUBJECTS, "--json", str(file))

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [section for section in SECTIONS if section not in lines] == []
    figures = json.loads(file.read_text(encoding="utf-8"))["figures"]
    rates = {f["of"]: f["runs"] for f in figures if f["figure"] == f"{MAIN}: calls/s"}
    assert rates["busmicro"][0] > 0
    assert rates["bare protocol"][0] > 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_behind(number: signal.Signals) -> None:
    """Ctrl-C, or a kill, ends the servers and clients too."""
    run = subprocess.Popen(
        [*RUN, "--quick", "--only", "rpc"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert run.stderr is not None
    assert b"round" in run.stderr.readline()  # all processes have started
    processes = sorted(descendants(run.pid))

    run.send_signal(number)
    run.communicate(timeout=40)

    assert len(processes) > 4
    wait_until(lambda: not [pid for pid in processes if is_alive(pid)])


def descendants(pid: int) -> Iterator[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text("ascii").split()):
            yield child
            yield from descendants(child)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2][0] != "Z"


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_subject_that_does_not_exist_is_named() -> None:
    """A typing error is told, with what could have been meant, and nothing is measured."""
    done = run_to_its_end("--only", "rcp")

    assert done.returncode == 2
    assert "rcp" in done.stderr
    assert "rpc" in done.stderr


def test_the_page_is_never_written_by_half() -> None:
    """A run of less than everything cannot replace the figures of everything."""
    before = (ROOT / "docs" / "benchmarks.md").read_bytes()

    done = run_to_its_end("--markdown", "--only", "rpc")

    assert done.returncode == 2
    assert "--only" in done.stderr
    assert (ROOT / "docs" / "benchmarks.md").read_bytes() == before


def test_a_figure_is_judged_by_its_target() -> None:
    """Met and missed are what the target says, and a miss has its reason."""
    report = Report()

    report.add("Calls", "so many", "busmicro", [2.6, 2.4, 2.5], target="≥ 2.5")
    report.add("Calls", "so few", "busmicro", 1.4, target="≤ 1.3", why="it takes 40 µs")
    report.add("Calls", "large", "busmicro", 3_100.0, target="≥ 3,000")
    report.add("Calls", "free", "busmicro", 1.0, why="nothing to meet")

    assert [row.verdict for row in report.rows] == ["met", "MISSED it takes 40 µs", "met", ""]
    assert report.missed == 1


def test_a_quick_run_judges_nothing() -> None:
    """Figures that mean nothing are not held against targets."""
    report = Report(judged=False)

    report.add("Calls", "so many", "busmicro", 0.1, target="≥ 2.5", why="too quick")

    assert report.rows[0].verdict == ""
    assert report.missed == 0


def test_rivals_stand_beside_the_one_everybody_is_compared_with() -> None:
    """Each round is compared with itself, whatever the order; who is not installed is named."""
    report = Report()

    runs = {"ours": [30.0, 10.0, 20.0], "theirs": [10.0, 10.0, 10.0]}
    report.add_all("Calls", "calls/s", runs, "theirs")
    report.absent("Calls", "calls/s", "nobody", "not installed")

    ours, theirs, nobody = (row.beside for row in report.rows)
    assert ours.startswith("2.00 ")
    assert ours.endswith(" theirs")
    assert theirs == nobody == ""
    assert report.rows[0].spread == "10.0-30.0"
    assert "not installed" in table(report.rows)[-1]


def test_a_figure_of_many_is_named_once() -> None:
    """In both forms of the table the name of a figure stands in its first row only."""
    report = Report()
    report.add_all("Calls", "calls/s", {"ours": [2.0], "theirs": [1.0]}, "theirs")

    assert sum("calls/s" in line for line in table(report.rows)) == 1
    assert sum("calls/s" in line for line in markdown(report.rows)) == 1


def test_the_page_keeps_its_prose() -> None:
    """Only what stands between the marks is replaced; without marks nothing is written."""
    page = f"Before.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n"

    written = replaced(page, ["new"])

    assert written == f"Before.\n\n{BEGIN}\n\nnew\n\n{END}\n\nAfter.\n"
    assert replaced(written, ["new"]) == written
    with pytest.raises(ValueError, match="has to have"):
        replaced("no marks", [])


def test_the_documents_have_the_marks() -> None:
    """The page that the command writes can be written."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    assert replaced(page, ["figures"]) != page
