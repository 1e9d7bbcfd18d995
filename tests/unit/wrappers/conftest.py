"""What the tests of wrappers share: calls of any kind, at either side."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busmicro.call import Call, Kind, Side, Spec

MakeCall = Callable[..., Call]


@pytest.fixture
def call_of() -> MakeCall:
    """Make a call; each `Spec` is made once, as endpoints do."""
    specs: dict[object, Spec] = {}

    def make(
        message: object = None,
        *,
        service: str = "users",
        endpoint: str = "find",
        kind: Kind = Kind.UNARY,
        side: Side = Side.CLIENT,
        idempotent: bool = False,
        deadline: float | None = None,
    ) -> Call:
        spec = Spec(service=service, endpoint=endpoint, kind=kind, side=side, idempotent=idempotent)
        return Call(specs.setdefault(spec, spec), message, deadline=deadline)

    return make
