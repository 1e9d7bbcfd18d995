"""The bugs fit the package as it is now, and trials know which of them are found.

`make mutations` tries all of them.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutations.bug import ROOT, Bug, mutated
from tests.mutations.catalogue import BUGS
from tests.mutations.trial import run_tests


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_bug_fits_the_package(bug: Bug):
    """Its line is there exactly once, what stands instead is Python, its tests exist."""
    compile(mutated(bug), bug.file, "exec")

    assert bug.tests
    for test in bug.tests:
        assert (ROOT / "tests" / test.partition("::")[0]).exists(), test


def test_bugs_have_names_of_their_own():
    """A row of the table says which bug it is about."""
    assert [name for name, count in Counter(bug.name for bug in BUGS).items() if count > 1] == []


def test_trial_names_the_test_that_found_a_bug():
    """A bug makes a test fail that passes without it."""
    bug = Bug(
        "earns nothing",
        "wrappers/retry.py",
        "budget.succeeded()",
        "pass",
    )
    outcome = run_tests(["unit/test_retry.py"], bug)

    assert outcome.found_by.startswith("tests/unit/test_retry.py::"), outcome.said


def test_trial_finds_nothing_in_a_change_that_means_nothing():
    """A copy of the project that is merely another one is green, whatever it is called."""
    change = Bug("is the same", "wrappers/retry.py", "attempt += 1", "attempt = attempt + 1")
    outcome = run_tests(["unit/test_recover.py"], change)

    assert outcome.passed, outcome.said
    assert not outcome.found_by


def test_trial_does_not_take_broken_code_for_a_bug_that_was_found():
    """A copy that cannot even be imported proves nothing about the tests."""
    broken = Bug("does not compile", "wrappers/retry.py", "attempt += 1", "attempt +=")
    outcome = run_tests(["unit/test_retry.py"], broken)

    assert not outcome.passed
    assert not outcome.found_by
