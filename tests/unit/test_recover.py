"""Whatever a handler raises becomes an answer, and nothing secret leaves the service."""

from __future__ import annotations

import asyncio
import logging

import pytest

from busmicro.call import Call, Kind, Side, Spec
from busmicro.errors import CodecError, Internal, NotFound
from busmicro.wrappers import Recover

CALL = Call(Spec(service="greeter", endpoint="hello", kind=Kind.UNARY, side=Side.HANDLER))


async def recovered(failure: BaseException) -> object:
    async def handler(_call: Call) -> object:
        raise failure

    return await Recover()(CALL, handler)


@pytest.mark.parametrize(
    "failure",
    [
        ZeroDivisionError("pw=hunter2"),
        SystemExit(3),
        pytest.fail.Exception("hunter2"),
        CodecError("hunter2"),
        TimeoutError("hunter2"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_failure_is_answered_with_an_id_and_logged(
    failure: BaseException, caplog: pytest.LogCaptureFixture
):
    """The caller gets an id, the log has the same id beside the traceback."""
    with caplog.at_level(logging.ERROR), pytest.raises(Internal) as answered:
        await recovered(failure)

    fault = answered.value.message.rpartition(" ")[2]
    assert len(fault) == 8
    assert "hunter2" not in str(answered.value)
    assert f"greeter.hello failed [{fault}]" in caplog.text
    assert type(failure).__name__ in caplog.text


async def test_answer_of_a_handler_passes():
    """A handler that raises `NotFound` answers `not_found`."""
    answer = NotFound("no such user")

    with pytest.raises(NotFound) as raised:
        await recovered(answer)

    assert raised.value is answer


@pytest.mark.parametrize("signal", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
async def test_cancellation_is_not_an_answer(signal: type[BaseException]):
    """A handler that is cancelled ends, it does not answer `internal`."""
    with pytest.raises(signal):
        await recovered(signal())


async def test_reply_passes():
    """What a handler returns is what the caller gets."""

    async def handler(_call: Call) -> object:
        return "hello"

    assert await Recover()(CALL, handler) == "hello"
