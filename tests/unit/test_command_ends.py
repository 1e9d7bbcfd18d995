"""How a command ends, and what it says of many calls."""

from __future__ import annotations

import traceback

import pytest

from busmicro.cli.failures import report
from busmicro.cli.load import _Result, measure
from busmicro.cli.words import clean
from busmicro.errors import NotFound, SetupError
from busmicro.settings import Settings


def test_fault_of_busmicro_itself_is_not_reported_as_somebody_elses():
    """What nobody raised on purpose is raised on, so that its traceback is seen."""
    fault = LookupError("nothing there")

    with pytest.raises(LookupError) as raised:
        report(fault)

    assert raised.value is fault


def test_figures_of_many_calls_are_in_order():
    """Half of the calls were as quick as p50 or quicker, and none was slower than max."""
    result = _Result(seconds=1.0, latencies=[0.004, 0.001, 0.1, 0.002, 0.003])

    assert result.latency_ms() == {"min": 1.0, "p50": 3.0, "p90": 100.0, "p99": 100.0, "max": 100.0}


@pytest.mark.parametrize("failing", [False, True])
async def test_failed_calls_make_a_command_fail(failing: bool, capsys):
    """A script learns by the exit code that one of many calls has failed."""
    calls = 0

    async def send() -> object:
        nonlocal calls
        calls += 1
        if failing and calls == 2:
            raise NotFound("gone")
        return None

    assert await measure(send, 5, 2) == (64 + 5 if failing else 0)
    assert calls == 5
    assert f"{int(failing)} failed" in capsys.readouterr().out


def test_texts_of_others_cannot_steer_a_terminal():
    """What would move a cursor or ring a bell is shown as a mark in its place."""
    assert clean("a\x1b[2Jb\x07\n") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}\n"


def test_wrong_setting_shows_no_secret_even_in_its_traceback():
    """Tracebacks end in logs, and URLs may hold passwords."""
    secret = "".join(map(str, range(7)))  # else the line of this test would show it
    with pytest.raises(SetupError) as wrong:
        Settings.load(nats_url=f"http://shop:{secret}@bus:4222")

    assert secret not in "".join(traceback.format_exception(wrong.value))
