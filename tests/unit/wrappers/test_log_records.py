"""What a record holds for whoever writes it in another way than busmicro does."""

from __future__ import annotations

import logging

import pytest

from busmicro.call import Call, Kind, Side, Spec
from busmicro.headers import Headers
from busmicro.wrappers import Log


async def test_secret_headers_are_not_in_the_record_either(caplog: pytest.LogCaptureFixture):
    """Formatters that know nothing of secrets cannot show one."""
    caplog.set_level(logging.INFO, "busmicro.exchange")
    spec = Spec(service="users", endpoint="find", kind=Kind.UNARY, side=Side.HANDLER)
    said = {"Bus-Caller": "shop", "Authorization": "hunter2", "X-Card": "4111"}

    async def answer(_call: Call) -> object:
        return "hello"

    await Log(headers=[*said], redact=["x-card"])(Call(spec, headers=Headers(said)), answer)

    [record] = caplog.records
    assert record.__dict__["headers"] == {
        "Bus-Caller": "shop",
        "Authorization": "***",
        "X-Card": "***",
    }
