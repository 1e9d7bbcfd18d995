"""Events that nobody keeps: they reach whoever listens at that moment, at most once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from pydantic import BaseModel

from busmicro import (
    Call,
    Client,
    Handler,
    InvalidArgument,
    NatsServer,
    PermissionDenied,
    Service,
    SetupError,
    Topic,
)
from busmicro.call import Kind, Side

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Order(BaseModel):
    n: int


CREATED = Topic("orders.created", Order)


async def test_every_node_gets_every_event_and_a_group_shares_them(server, until):
    """Without a group everybody gets everything; the nodes of a group share."""
    alone: list[tuple[int, int]] = []
    shared: list[tuple[int, int]] = []

    def node(number: int) -> Service:
        service = Service("shop", url=server.url)

        @service.subscribe(CREATED)
        async def on_created(order: Order) -> None:
            alone.append((number, order.n))

        @service.subscribe(CREATED, group="billing")
        async def bill(order: Order) -> None:
            shared.append((number, order.n))

        return service

    async with node(1), node(2), Client(server.url) as client:
        for n in range(100):
            assert await client.publish(CREATED, Order(n=n)) is None
        await until(lambda: len(alone) == 200 and len(shared) == 100)

    assert sorted(n for _, n in shared) == list(range(100))
    assert {number for number, _ in shared} == {1, 2}
    assert sorted(alone) == [(number, n) for number in (1, 2) for n in range(100)]


async def test_handlers_of_different_groups_are_never_merged(server, until):
    """Two handlers of one topic in one service each get all, each in its own group."""
    got: list[tuple[str, int]] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED, group="billing")
    async def bill(order: Order) -> None:
        got.append(("billing", order.n))

    @service.subscribe(CREATED, group="stock")
    async def count(order: Order) -> None:
        got.append(("stock", order.n))

    async with service:
        for n in range(10):
            await service.publish(CREATED, Order(n=n))
        await until(lambda: len(got) >= 20)
        await service.bus.transport.barrier()

    assert sorted(got) == [(group, n) for group in ("billing", "stock") for n in range(10)]


async def test_second_handler_of_a_group_is_refused():
    """Two handlers that would take each other's events are an error that names both."""
    service = Service("shop")

    @service.subscribe(CREATED, group="billing")
    async def bill(order: Order) -> None: ...

    with pytest.raises(SetupError, match=r"again.*'billing'.*bill.*another group"):

        @service.subscribe(CREATED, group="billing")
        async def again(order: Order) -> None: ...


async def test_namespaces_keep_events_apart(server, until):
    """Events of one namespace are not seen in another, and subjects lack no prefix on the wire."""
    got: list[tuple[str, str]] = []

    def node(namespace: str) -> Service:
        service = Service("shop", url=server.url, namespace=namespace)

        @service.subscribe(CREATED)
        async def on_created(order: Order, call: Call) -> None:
            got.append((namespace, call.subject))

        return service

    async with node("prod") as prod, node("test") as test:
        await prod.publish(CREATED, Order(n=1))
        await test.publish(CREATED, Order(n=2))
        await until(lambda: len(got) == 2)

    assert sorted(got) == [("prod", "prod.orders.created"), ("test", "test.orders.created")]


@pytest.mark.parametrize(
    ("kind", "content_type", "event"),
    [
        (Order, "", Order(n=1)),
        (Order, "application/msgpack", Order(n=1)),
        (StringValue, "", StringValue(value="Ada")),
        (bytes, "", b"\x00\xff"),
        (dict[str, int], "", {"n": 1}),
        (int, "", 17),
    ],
)
async def test_events_travel_in_every_content_type(server, until, kind, content_type, event):
    """Whatever a call can carry, an event can; only JSON needs no `Content-Type`."""
    topic = Topic("things.made", kind, content_type=content_type)
    got: list[object] = []
    said: list[str | None] = []
    service = Service("shop", url=server.url)

    async def note(call: Call, call_next: Handler) -> object:
        said.append(call.headers.get("Content-Type"))
        return await call_next(call)

    service.wrap_handler(note)

    async def on_made(thing: object) -> None:
        got.append(thing)

    service.subscribe(topic)(on_made)
    async with service:
        await service.publish(topic, event)
        await until(lambda: got)

    assert got == [event]
    wanted = content_type or {StringValue: "application/protobuf", bytes: None}.get(kind)
    if kind is not bytes:
        assert said == [wanted]


async def test_headers_arrive_and_wrappers_see_both_sides(server, until):
    """One wrapper object goes around publishing and handling; `kind` is EVENT at both ends."""
    seen: list[tuple[Kind, Side, str, str]] = []
    got: list[str | None] = []

    async def audit(call: Call, call_next: Handler) -> object:
        spec = call.spec
        seen.append((spec.kind, spec.side, spec.endpoint, call.subject))
        call.headers["Seen"] = spec.side.value
        result = await call_next(call)
        seen.append((spec.kind, spec.side, "done", call.subject))
        return result

    service = Service("shop", url=server.url, client_wrappers=[audit], handler_wrappers=[audit])

    @service.subscribe(CREATED)
    async def on_created(order: Order, call: Call) -> None:
        got.append(call.headers.get("Tenant"))

    async with service:
        await service.publish(CREATED, Order(n=1), headers={"Tenant": "acme"})
        await until(lambda: len(seen) == 4)

    assert got == ["acme"]
    assert seen == [
        (Kind.EVENT, side, what, "orders.created")
        for side in (Side.CLIENT, Side.HANDLER)
        for what in ("orders.created", "done")
    ]


async def test_trace_goes_on_and_nothing_else_does(server, until):
    """What a handler publishes belongs to the trace of its event; other headers stay behind."""
    shipped = Topic("orders.shipped", Order)
    got: list[dict[str, str]] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED)
    async def on_created(order: Order) -> None:
        await service.publish(shipped, order)
        await service.publish(shipped, order, headers={"traceparent": "00-mine"})

    @service.subscribe(shipped)
    async def on_shipped(order: Order, call: Call) -> None:
        got.append(dict(call.headers))

    async with service:
        headers = {"traceparent": TRACE, "tracestate": "a=1", "baggage": "b=2", "Tenant": "acme"}
        await service.publish(CREATED, Order(n=1), headers=headers)
        await until(lambda: len(got) == 2)

    assert got[0] == {"traceparent": TRACE, "tracestate": "a=1", "baggage": "b=2"}
    assert got[1]["traceparent"] == "00-mine"


async def test_words_of_the_subject_become_parameters(server, until):
    """Names in braces are typed parameters; an event whose word does not fit is not handled."""
    topic = Topic("orders.{region}.{shelf}.created", Order)
    got: list[tuple[str, int, int]] = []
    service = Service("shop", url=server.url, namespace="a.b")

    @service.subscribe(topic)
    async def on_created(order: Order, shelf: int, region: str) -> None:
        got.append((region, shelf, order.n))

    async with service:
        await service.publish(topic.format(region="eu", shelf="none"), Order(n=1))
        await service.publish(topic.format(region="eu", shelf=7), Order(n=2))
        await until(lambda: got)

    assert got == [("eu", 7, 2)]


async def test_words_are_found_when_the_subject_goes_on(server, until):
    """`{region}` before a `>` is the word that stands there, however many follow."""
    got: list[str] = []
    service = Service("shop", url=server.url, namespace="prod")

    @service.subscribe(Topic("shop.{region}.>", Order))
    async def on_any(order: Order, region: str) -> None:
        got.append(region)

    async with service:
        await service.publish(Topic("shop.eu.a", Order), Order(n=1))
        await service.publish(Topic("shop.us.a.b.c", Order), Order(n=1))
        await until(lambda: len(got) == 2)

    assert got == ["eu", "us"]


@pytest.mark.parametrize("keyed", [False, True])
async def test_slow_handler_drops_and_counts_instead_of_growing(server, until, caplog, keyed):
    """What comes while too many wait is dropped; the 1st, 2nd, 4th, 8th … drop is logged."""
    caplog.set_level(logging.WARNING)
    gate = asyncio.Event()
    handled: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(
        CREATED,
        waiting=8,
        concurrency=4 if keyed else 1,
        key=(lambda _: 0) if keyed else None,
    )
    async def on_created(order: Order) -> None:
        await gate.wait()
        handled.append(order.n)

    async with service, Client(server.url) as client:
        for n in range(60):  # one by one, so that a worker gets to look at each
            await client.publish(CREATED, Order(n=n))
            await client.bus.transport.barrier()
            await service.bus.transport.barrier()
        gate.set()
        await until(lambda: 0 in handled)
        await client.publish(CREATED, Order(n=99))
        await until(lambda: 99 in handled)

    said = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
    assert len(handled) <= 8 + 1 + 1
    assert handled == sorted(handled)
    assert [text.split("dropped (")[1].split()[0] for text in said] == [
        "1",
        "2",
        "4",
        "8",
        "16",
        "32",
    ]
    assert "give the topic a stream" in said[0]


async def test_only_so_many_run_at_once(server, until):
    """`concurrency` is kept, and used to the full."""
    running, most, done = 0, 0, 0
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED, concurrency=5)
    async def on_created(order: Order) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        done += 1

    async with service:
        for n in range(100):
            await service.publish(CREATED, Order(n=n))
        await until(lambda: done == 100)

    assert most == 5


async def test_stopping_handles_what_waits(server, until):
    """Nobody else has an event that no stream keeps, so a service that stops finishes them."""
    handled: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED, concurrency=2)
    async def on_created(order: Order) -> None:
        await asyncio.sleep(0.01)
        handled.append(order.n)

    async with Client(server.url) as client:
        await service.start()
        for n in range(20):
            await client.publish(CREATED, Order(n=n))
        await client.bus.transport.barrier()
        await until(lambda: handled)
        await service.stop()

    assert sorted(handled) == list(range(20))


async def test_handler_of_lists_gets_lists(server, until, caplog):
    """Events are gathered; one that does not decode is logged and the rest of its list handled."""
    lists: list[list[int]] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED, batch=3, batch_wait=0.1)
    async def on_created(orders: list[Order]) -> None:
        lists.append([order.n for order in orders])

    async with service:
        for n in range(4):
            await service.publish(CREATED, Order(n=n))
        service.bus.transport.publish(b"orders.created", b"{")
        await until(lambda: len(lists) == 2)

    assert lists == [[0, 1, 2], [3]]
    assert "an event is lost: invalid_argument" in caplog.text


async def test_handler_that_fails_loses_one_event_only(server, until, caplog):
    """A failure is logged by topic, and the next event is handled."""
    handled: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED)
    async def on_created(order: Order) -> None:
        if order.n == 0:
            raise ValueError("out of stock")
        handled.append(order.n)

    async with service:
        for n in range(2):
            await service.publish(CREATED, Order(n=n))
        await until(lambda: handled)

    assert handled == [1]
    assert "orders.created: an event is lost: internal" in caplog.text
    assert "out of stock" in caplog.text


async def test_publishing_can_be_a_task(server, until):
    """`publish` gives a coroutine, with and without wrappers, for tasks and `gather`."""

    async def pass_on(call: Call, call_next: Handler) -> object:
        return await call_next(call)

    got: list[int] = []
    service = Service("shop", url=server.url)

    @service.subscribe(CREATED)
    async def on_created(order: Order) -> None:
        got.append(order.n)

    loop = asyncio.get_running_loop()
    async with service, Client(server.url, wrappers=[pass_on]) as client:
        for who in (service, client):
            assert await loop.create_task(who.publish(CREATED, Order(n=1))) is None
            await asyncio.gather(*(who.publish(CREATED, Order(n=n)) for n in range(2, 4)))
        await until(lambda: len(got) == 6)

    assert sorted(got) == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("publish", "says"),
    [
        (lambda c: c.publish(CREATED, "order"), "n"),
        (lambda c: c.publish(Topic("orders.*", Order), Order(n=1)), "publish to one subject"),
        (lambda c: c.publish(Topic("orders.{r}", Order), Order(n=1)), r"topic.format\(r=…\)"),
        (lambda c: c.publish(CREATED, Order(n=1), id="1"), "has no stream: id="),
        (lambda c: c.publish(CREATED, Order(n=1), after=1), "has no stream"),
        (lambda c: c.publish(CREATED, Order(n=1), headers={"a b": "c"}), "header name"),
        (lambda c: c.publish_many(CREATED, [Order(n=1)]), "use publish"),
    ],
)
async def test_what_cannot_be_published_is_refused(server, publish, says):
    """Nothing that nobody could read or keep is sent."""
    async with Client(server.url) as client:
        with pytest.raises(InvalidArgument, match=says) as caught:
            await publish(client)

    assert caught.value.not_run


async def test_forbidden_topic_is_named_at_start(tmp_path: Path):
    """A service that may not listen to a topic says which subject."""
    config = tmp_path / "nats.conf"
    config.write_text(
        "authorization { users: [ {user: s, password: p, permissions: "
        '{subscribe: {deny: "orders.>"}}} ] }'
    )
    async with NatsServer(config=config) as server:
        service = Service("shop", url=server.url.replace("//", "//s:p@"))

        @service.subscribe(CREATED)
        async def on_created(order: Order) -> None: ...

        with pytest.raises(PermissionDenied, match=r"orders\.created"):
            await service.start()
