"""Every way a call can end keeps its class, its numbers and its text."""

from __future__ import annotations

import pickle

import pytest

from busmicro.errors import (
    TABLE,
    BusmicroError,
    CallError,
    Code,
    CodecError,
    Disconnected,
    FailedPrecondition,
    NoResponders,
    NotFound,
    PayloadTooLarge,
    ResourceExhausted,
    SetupError,
    Unavailable,
    Unknown,
    code_from_http,
)

FAILURES = [code for code in Code if code is not Code.OK]


def test_table_knows_every_code():
    """Whatever a call ends with, there is one HTTP status, one number and one exit code for it."""
    assert set(TABLE) == set(Code)
    assert sorted(meaning.number for meaning in TABLE.values()) == list(range(17))
    assert TABLE[Code.OK].exit_code == 0
    assert TABLE[Code.NOT_FOUND].exit_code == 69


@pytest.mark.parametrize("code", FAILURES)
def test_each_code_has_a_class_of_its_own(code: Code):
    """What a handler raises is caught by the same class at the caller."""
    error = CallError.of(code, "why", details=[1], origin="greeter")

    assert type(error) is not CallError
    assert type(error).code is code
    assert (error.message, error.details, error.origin) == ("why", [1], "greeter")
    assert not error.not_run


def test_class_made_for_a_code_is_the_plain_one():
    """A size limit at the other end is not taken for one of this process."""
    error = CallError.of(Code.RESOURCE_EXHAUSTED, "slow down")

    assert type(error) is ResourceExhausted
    assert type(CallError.of(Code.UNAVAILABLE)) is Unavailable


def test_success_is_not_an_error_class():
    """Asking for the error of `ok` gives `unknown`, never an error that says all is well."""
    assert type(CallError.of(Code.OK, "?")) is Unknown


def test_users_subclass_keeps_the_code_of_its_parent():
    """An application's own error crosses the wire as the busmicro error it derives from."""

    class OutOfStock(FailedPrecondition):
        """Nothing left."""

    assert OutOfStock("no bread").code is Code.FAILED_PRECONDITION
    assert type(CallError.of(Code.FAILED_PRECONDITION)) is FailedPrecondition


def test_users_subclass_with_a_code_does_not_take_over_that_code():
    """An application that names a code in its own class does not change what others catch."""

    class NoSuchUser(CallError):
        """Nobody of that name."""

        code = Code.NOT_FOUND

    assert NoSuchUser().code is Code.NOT_FOUND
    assert type(CallError.of(Code.NOT_FOUND)) is NotFound


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NotFound("no such user"), "not_found: no such user"),
        (NotFound("no such user", origin="users"), "not_found: no such user [users]"),
        (NotFound(), "not_found"),
        (NotFound(origin="users"), "not_found [users]"),
    ],
)
def test_text_of_an_error_says_code_message_and_origin(error: CallError, text: str):
    """One line in a log says what happened and which service said so."""
    assert str(error) == text


def test_errors_of_a_connection_tell_whether_anything_ran():
    """A caller can tell a call that certainly did not run from one that may have."""
    assert NoResponders("rpc.a.b").not_run
    assert Disconnected("down", not_run=True).not_run
    assert not Disconnected("dropped", not_run=False).not_run
    assert PayloadTooLarge(2_000_000, 1_000_000).not_run


def test_payload_too_large_names_both_sizes():
    """Who sends too much is told how much it was and how much it may be."""
    error = PayloadTooLarge(2_000_000, 1_048_576)

    assert (error.size_bytes, error.limit_bytes) == (2_000_000, 1_048_576)
    assert "2,000,000" in str(error)
    assert "1,048,576" in str(error)


@pytest.mark.parametrize("kind", [SetupError, CodecError])
def test_faults_of_the_program_are_value_errors_too(kind: type[BusmicroError]):
    """Code that catches ValueError, as pydantic's users do, catches these as well."""
    assert issubclass(kind, ValueError)
    assert not issubclass(kind, CallError)


@pytest.mark.parametrize("status", range(600))
def test_every_error_number_of_a_foreign_service_has_a_code(status: int):
    """A service that is not busmicro's cannot send a number that means success or breaks."""
    code = code_from_http(status)

    assert code is not Code.OK
    assert (code is Code.UNKNOWN) == (
        not 400 <= status < 500 and status not in {500, 501, 503, 504}
    )


@pytest.mark.parametrize("code", FAILURES)
def test_http_status_read_back_means_nearly_the_same(code: Code):
    """A reader that knows only the HTTP status gets a code with that status."""
    status = TABLE[code].http_status

    assert TABLE[code_from_http(status)].http_status == status


@pytest.mark.parametrize(
    "error",
    [
        NotFound("gone", details=[1], origin="users"),
        PayloadTooLarge(2_000_000, 1_048_576),
        NoResponders("rpc.a.b"),
        Disconnected("down", not_run=True),
    ],
)
def test_errors_cross_process_borders(error: CallError):
    """An error can be pickled, as process pools and task queues do, and comes back whole."""
    got = pickle.loads(pickle.dumps(error))

    assert type(got) is type(error)
    assert str(got) == str(error)
    assert vars(got) == vars(error)
