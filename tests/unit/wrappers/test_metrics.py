"""Every exchange is measured once, in seconds, under the names of the conventions."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from busmicro.call import Call, Handler, Kind, Side, Spec, compose
from busmicro.errors import NotFound
from busmicro.session import Session
from busmicro.testing import FakeClock
from busmicro.wrappers.conventions import DURATION_BOUNDS
from busmicro.wrappers.metrics import Metrics

ACK = b"$JS.ACK.ORDERS.billing.1.17.21.1764000000000000000.42"


class Measured:
    """Everything that was measured in a test."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)

    def points(self, name: str) -> list[Any]:
        data = self.reader.get_metrics_data()
        if data is None:
            return []
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def measured() -> Measured:
    return Measured()


@pytest.fixture
def wrapper(measured: Measured, clock: FakeClock) -> Metrics:
    return Metrics(meter_provider=measured.provider, clock=clock)


def call_of(
    kind: Kind = Kind.UNARY, side: Side = Side.HANDLER, endpoint: str = "get", ack: bytes = b""
) -> Call:
    spec = Spec(service="orders", endpoint=endpoint, kind=kind, side=side)
    return Call(spec, "hello", ack=ack, payload=b"x")


def taking(clock: FakeClock, seconds: float, failure: Exception | None = None) -> Handler:
    async def end(_call: Call) -> object:
        await clock.advance(seconds)
        if failure is not None:
            raise failure
        return "hello"

    return end


@pytest.mark.parametrize(
    ("kind", "side", "name"),
    [
        (Kind.UNARY, Side.CLIENT, "rpc.client.call.duration"),
        (Kind.UNARY, Side.HANDLER, "rpc.server.call.duration"),
        (Kind.STREAM, Side.HANDLER, "rpc.server.call.duration"),
        (Kind.EVENT, Side.CLIENT, "messaging.client.operation.duration"),
        (Kind.EVENT, Side.HANDLER, "messaging.process.duration"),
    ],
)
async def test_duration_is_a_histogram_in_seconds(
    measured: Measured, wrapper: Metrics, clock: FakeClock, kind: Kind, side: Side, name: str
):
    """Each kind and side has its histogram, with the bounds that dashboards expect."""
    assert await wrapper(call_of(kind, side), taking(clock, 0.3)) == "hello"

    (point,) = measured.points(name)
    assert point.count == 1
    assert point.sum == pytest.approx(0.3)
    assert point.explicit_bounds == DURATION_BOUNDS


async def test_ends_are_told_apart_by_code(measured: Measured, wrapper: Metrics, clock: FakeClock):
    """How many ended in which way can be counted; an answer is no error of the service."""
    await wrapper(call_of(), taking(clock, 0.1))
    for failure in (NotFound("no bob"), ZeroDivisionError("hunter2")):
        with pytest.raises(type(failure)):
            await wrapper(call_of(), taking(clock, 0.1, failure))

    ends = {
        (point.attributes["rpc.response.status_code"], point.attributes.get("error.type"))
        for point in measured.points("rpc.server.call.duration")
    }
    assert ends == {("ok", None), ("not_found", None), ("unknown", "ZeroDivisionError")}


async def test_what_is_under_way_is_counted(measured: Measured, wrapper: Metrics, clock: FakeClock):
    """While exchanges run they are seen, and not any more when they are over, however they end."""
    seen: list[int] = []

    async def look(_call: Call) -> object:
        seen.append(measured.points("busmicro.in_flight")[0].value)
        raise NotFound("x")

    with pytest.raises(NotFound):
        await wrapper(call_of(), look)

    assert seen == [1]
    assert measured.points("busmicro.in_flight")[0].value == 0


async def test_given_twice_it_measures_once(measured: Measured, wrapper: Metrics, clock: FakeClock):
    """Two wrappers around one exchange, of one service or of two, count it once."""
    other = Metrics(meter_provider=measured.provider, clock=clock)

    await compose([wrapper, other], taking(clock, 0.1))(call_of())

    (point,) = measured.points("rpc.server.call.duration")
    assert point.count == 1


async def test_events_are_counted_with_what_waits_behind_them(
    measured: Measured, wrapper: Metrics, clock: FakeClock
):
    """The lag of a consumer is what the server said with its latest event."""
    await wrapper(call_of(Kind.EVENT, Side.CLIENT, "orders.paid"), taking(clock, 0.1))
    await wrapper(call_of(Kind.EVENT, Side.HANDLER, "orders.paid", ACK), taking(clock, 0.1))

    assert measured.points("messaging.client.sent.messages")[0].value == 1
    assert measured.points("messaging.client.consumed.messages")[0].value == 1
    (lag,) = measured.points("busmicro.consumer.lag")
    assert (lag.value, lag.attributes["messaging.consumer.group.name"]) == (42, "billing")


async def test_list_of_events_counts_as_many(
    measured: Measured, wrapper: Metrics, clock: FakeClock
):
    """A handler of lists consumes all of a list at once."""
    call = Call(call_of(Kind.EVENT, endpoint="orders.paid").spec, ["a", "b", "c"])
    call.began = True

    await wrapper(call, taking(clock, 0.1))

    assert measured.points("messaging.client.consumed.messages")[0].value == 3


async def test_stream_lasts_as_long_as_its_block(
    measured: Measured, wrapper: Metrics, clock: FakeClock
):
    """The duration of a stream is that of its block."""

    @contextlib.asynccontextmanager
    async def opener(_call: Call) -> AsyncIterator[str]:
        yield "open"

    call = call_of(Kind.STREAM, Side.CLIENT)
    async with Session(partial(compose, [wrapper]), call, opener):
        await clock.advance(3.0)
        assert measured.points("busmicro.in_flight")[0].value == 1

    assert measured.points("rpc.client.call.duration")[0].sum == pytest.approx(3.0)


async def test_endless_endpoints_are_measured_together(
    measured: Measured, wrapper: Metrics, clock: FakeClock
):
    """Whatever names callers invent, the figures stay a bounded number."""

    async def answer(_call: Call) -> object:
        return None

    for number in range(1_100):
        await wrapper(call_of(side=Side.CLIENT, endpoint=f"e{number}"), answer)

    points = measured.points("rpc.client.call.duration")
    assert len(points) <= 1_001
    (other,) = [p for p in points if p.attributes["rpc.method"] == "_OTHER"]
    assert other.count == 100


async def test_further_attempts_are_counted_where_they_arrive(
    measured: Measured, wrapper: Metrics, clock: FakeClock
):
    """A service sees how much of its load comes from callers that try again."""
    await wrapper(call_of(), taking(clock, 0.1))
    again = call_of()
    again.headers["Bus-Attempt"] = "2"
    await wrapper(again, taking(clock, 0.1))

    assert [point.value for point in measured.points("busmicro.retries")] == [1]
