"""Set-up errors: what cannot be meant is refused before any I/O, with the fix."""

from __future__ import annotations

import pytest

from busmicro import Client, Service, SetupError
from tests.nats.calls.greeter import HelloReply, HelloRequest, greeter


def test_bad_handlers_are_refused_with_the_fix():
    """A handler that cannot work is refused at registration; the text names it and the fix."""
    service = Service("bad")

    def sync(request: HelloRequest) -> HelloReply: ...

    async def unhinted(request) -> HelloReply: ...

    async def silent(request: HelloRequest): ...

    async def many(a: int, b: int) -> int: ...

    for function, fix in [
        (sync, "async def"),
        (unhinted, "has no type hint"),
        (silent, "does not say what it returns"),
        (many, "takes 2 messages"),
    ]:
        with pytest.raises(SetupError, match=fix) as caught:
            service.rpc(function)
        assert function.__name__ in str(caught.value)


def test_duplicate_endpoint_names_both_functions():
    """Two handlers of one name are refused, and the text names both."""
    service = greeter()

    async def hello(request: HelloRequest) -> HelloReply: ...

    with pytest.raises(SetupError, match=r"hello.*taken by.*hello"):
        service.rpc(hello)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Service("a b"), "service name"),
        (lambda: Service("a.b"), "service name"),
        (lambda: Service("a", version="one"), "semver"),
        (lambda: Service("a", id="x y"), "node id"),
        (lambda: Service("a", namespace="rpc"), "namespace"),
        (lambda: Service("a").rpc("x.y.z")(greeter), "endpoint|async"),
        (lambda: Service("a").rpc("Debug.x")(_nothing), "service's own"),
        (lambda: Service("a").rpc("a b")(_nothing), "endpoint name"),
        (lambda: Service("a").handle(object()), "no public async method"),
        (lambda: Service("a").rpc("x", timeout=-1)(_nothing), "timeout=-1"),
        (lambda: Client(timeout=0), "timeout=0"),
        (lambda: Client("http://x"), "NATS_URL"),
        (lambda: Service("a").client, "does not run"),
    ],
)
def test_nonsense_is_refused_before_any_io(make, says):
    """Names, versions and numbers that cannot be meant raise SetupError with the rule."""
    with pytest.raises(SetupError, match=says):
        make()


async def _nothing() -> None: ...
