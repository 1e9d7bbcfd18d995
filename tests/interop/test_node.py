"""A program in another language takes part: it calls, is called, lists and is listed.

`busclient.js` is written from docs/protocol.md; where these tests fail, one of the two is wrong.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import datetime

import pytest
from pydantic import BaseModel

from busmicro import (
    Call,
    CallError,
    Internal,
    InvalidArgument,
    NotFound,
    Service,
    Unimplemented,
    Unknown,
)

pytestmark = pytest.mark.node


class Order(BaseModel):
    item: str
    count: int


class Receipt(BaseModel):
    text: str


class Shop(Service):
    """A service that tells what happens to its handlers."""

    def __init__(self) -> None:
        super().__init__("shop", version="2.1.0", metadata={"city": "Ghent"})
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.rpc("order")(self._order)
        self.rpc("Till.total", timeout=2.5, idempotent=True)(self._total)
        self.rpc("missing")(self._missing)
        self.rpc("label")(self._label)
        self.rpc("forever")(self._forever)
        self.rpc("city")(self._city)

    async def _order(self, order: Order) -> Receipt:
        return Receipt(text=f"{order.count} of {order.item}")

    async def _total(self) -> int:
        """Add up."""
        await asyncio.sleep(0.001)
        return 42

    async def _missing(self, order: Order) -> Receipt:
        details = [{"shelf": 7}]
        raise NotFound(f"no {order.item}, 100 % sure", details=details, retry_after=0.25)

    async def _label(self, order: Order) -> bytes:
        return b"\x00" * order.count

    async def _forever(self) -> None:
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def _city(self, order: Order, call: Call) -> str:
        return f"{order.item} for {call.headers['X-City']}"


@pytest.fixture
async def shop(busmicro_start) -> Shop:
    """A running shop."""
    return await busmicro_start(Shop())


async def soon(event: asyncio.Event) -> None:
    async with asyncio.timeout(5.0):
        await event.wait()


# --- another language calls busmicro ----------------------------------------------------------


async def test_node_calls_and_reads_a_json_reply(shop, peer):
    """A call made as the protocol says comes back as JSON, without a content type."""
    answer = await peer.call("shop", "order", {"item": "crêpe", "count": 2})

    assert answer == {"reply": {"type": "application/json", "value": {"text": "2 of crêpe"}}}


async def test_node_calls_a_two_word_endpoint_that_takes_nothing(shop, peer):
    """An endpoint `Class.method` keeps its dot in the subject, and `null` is no message."""
    assert (await peer.call("shop", "Till.total"))["reply"]["value"] == 42


async def test_node_calls_one_node_and_sends_headers(shop, peer):
    """A call reaches the node that was chosen, and its own headers reach the handler."""
    order = {"item": "tea", "count": 1}

    answer = await peer.call("shop", "city", order, node=shop.id, meta={"X-City": "Lille"})

    assert answer["reply"]["value"] == "tea for Lille"


async def test_node_reads_a_reply_that_is_not_json(shop, peer):
    """Raw bytes come back as what they are, though the request was JSON."""
    answer = await peer.call("shop", "label", {"item": "x", "count": 3})

    assert answer["reply"] == {"type": "application/octet-stream", "bytes": 3}


async def test_node_reads_the_error_of_a_handler(shop, peer):
    """Code, HTTP number, text in body and header, details, origin and pause arrive."""
    answer = await peer.call("shop", "missing", {"item": "crêpe", "count": 1})

    text = "no crêpe, 100 % sure"
    assert answer["error"] == {
        "code": "not_found",
        "message": text,
        "header": text,
        "status": 404,
        "details": [{"shelf": 7}],
        "origin": "shop",
        "retryAfter": 250,
        "notRun": False,
    }


@pytest.mark.parametrize("text", ["not JSON", '{"item": "x", "count": "many"}'])
async def test_node_reads_what_is_wrong_with_its_message(shop, peer, text):
    """A body that does not parse or validate is `invalid_argument`, 400, with the faults."""
    error = (await peer.call("shop", "order", text=text))["error"]

    assert (error["code"], error["status"]) == ("invalid_argument", 400)
    assert {"field", "problem", "type"} == set(error["details"][0])
    if text.startswith("{"):
        assert error["details"][0]["field"] == "count"


async def test_node_learns_that_a_content_type_is_not_taken(shop, peer):
    """A content type that the endpoint does not have is `invalid_argument`, naming those it has."""
    answer = await peer.call(
        "shop", "order", {"item": "x", "count": 1}, meta={"Content-Type": "text/plain"}
    )

    assert answer["error"]["code"] == "invalid_argument"
    assert "application/json" in answer["error"]["message"]


async def test_node_tells_an_unknown_endpoint_from_an_unknown_service(shop, peer):
    """Nobody listens: `$SRV.INFO` tells whether the service lives; a node answers for itself."""
    no_endpoint = (await peer.call("shop", "oder"))["error"]
    no_service = (await peer.call("shp", "order"))["error"]
    told_by_node = (await peer.call("shop", "oder", node=shop.id))["error"]

    assert no_endpoint["code"] == "unimplemented"
    assert no_service["code"] == "unavailable"
    assert (told_by_node["code"], told_by_node["status"]) == ("unimplemented", 501)
    assert "did you mean order" in told_by_node["message"]
    assert told_by_node["notRun"]


async def test_node_is_told_when_its_deadline_passes(shop, peer):
    """The service ends the handler at the caller's deadline and says so with 504."""
    error = (await peer.call("shop", "forever", timeout=100, patience=5000))["error"]

    assert (error["code"], error["status"]) == ("deadline_exceeded", 504)
    assert not error["notRun"]
    await soon(shop.ended)


async def test_call_that_is_late_already_does_not_run(shop, peer):
    """With no time left the handler is not begun, and the answer says that nothing ran."""
    error = (await peer.call("shop", "forever", timeout=0, patience=5000))["error"]

    assert (error["code"], error["notRun"]) == ("deadline_exceeded", True)
    assert not shop.began.is_set()


async def test_node_cancels_a_call(shop, peer):
    """One message ends the handler, and nothing is sent to whoever has gone."""
    number, result = peer.tell(
        "call", service="shop", endpoint="forever", text="", options={"timeout": 60_000}
    )
    await soon(shop.began)

    await peer.ask("cancel", call=number)

    assert (await result)["error"]["code"] == "cancelled"
    await soon(shop.ended)
    await peer.call("shop", "Till.total")  # what the node had sent before would be here by now
    assert await peer.ask("messages", call=number) == {"messages": 0}


async def test_node_gives_up_and_the_handler_ends(shop, peer):
    """A caller that stops waiting before the deadline it gave cancels what it asked for."""
    error = (await peer.call("shop", "forever", timeout=60_000, patience=50))["error"]

    assert error["message"] == "no reply in time"
    await soon(shop.ended)


# --- another language's tools look at busmicro ------------------------------------------------


async def test_nats_own_client_lists_a_busmicro_service(shop, peer):
    """PING and INFO of NATS' own library show name, id, version, metadata and endpoints."""
    pinged = (await peer.ask("list", verb="ping", name="", limit=10))["found"]
    (info,) = (await peer.ask("list", verb="info", name="shop", limit=1))["found"]

    (ping,) = [one for one in pinged if one["name"] == "shop"]
    assert ping["type"] == "io.nats.micro.v1.ping_response"
    assert info["type"] == "io.nats.micro.v1.info_response"
    for one in (ping, info):
        assert (one["id"], one["version"]) == (shop.id, "2.1.0")
        assert one["metadata"]["city"] == "Ghent"
        assert datetime.fromisoformat(one["metadata"]["busmicro.started"]).tzinfo
    assert info["description"] == ""
    total = next(e for e in info["endpoints"] if e["name"] == "Till_total")
    assert (total["subject"], total["queue_group"]) == ("rpc.shop.Till.total", "q")
    assert total["metadata"] == {
        "busmicro.idempotent": "true",
        "busmicro.timeout": "2.5",
        "busmicro.doc": "Add up.",
        "busmicro.reply": '{"type":"integer"}',
    }


async def test_nats_own_client_sees_figures_grow(shop, peer):
    """STATS of NATS' own library shows requests, errors and nanoseconds that are counted live."""

    async def figures(endpoint: str) -> dict:
        (stats,) = (await peer.ask("list", verb="stats", name="shop", limit=1))["found"]
        assert stats["type"] == "io.nats.micro.v1.stats_response"
        assert datetime.fromisoformat(stats["started"]).tzinfo
        return next(e for e in stats["endpoints"] if e["name"] == endpoint)

    before = await figures("Till_total")
    for _ in range(3):
        await peer.call("shop", "Till.total")
    await peer.call("shop", "missing", {"item": "x", "count": 1})
    after, failed = await figures("Till_total"), await figures("missing")

    assert (before["num_requests"], before["average_processing_time"]) == (0, 0)
    assert (after["num_requests"], after["num_errors"], after["last_error"]) == (3, 0, "")
    assert after["processing_time"] > 1_000_000  # nanoseconds: it slept three times a millisecond
    assert after["average_processing_time"] == after["processing_time"] // 3
    assert type(after["average_processing_time"]) is int
    assert (failed["num_requests"], failed["num_errors"]) == (1, 1)
    assert "100 % sure" in failed["last_error"]


# --- busmicro calls another language ------------------------------------------------------------


async def test_busmicro_calls_a_service_of_nats_own_framework(peer, busmicro_client):
    """An endpoint that listens on a subject of its own is found and called by name, every time."""
    await peer.ask("serve")

    for b in (2, 3):
        reply = await busmicro_client.call("calc", "add", {"a": 1, "b": b}, returns=dict[str, int])
        assert reply == {"sum": 1 + b}


@pytest.mark.parametrize(
    ("endpoint", "kind", "message"),
    [
        ("divide", InvalidArgument, "cannot divide by zero"),  # 422, with a body of plain text
        ("find", NotFound, "no such number"),  # 404, without a body
        ("odd", Unknown, "a number of its own"),  # 1234
        ("crash", Internal, "out of paper"),  # thrown: the framework sends 500
    ],
)
async def test_busmicro_reads_errors_of_nats_own_framework(
    peer, busmicro_client, endpoint, kind, message
):
    """The number of a foreign error becomes the class that fits, its plain text the message."""
    await peer.ask("serve")

    with pytest.raises(CallError) as caught:
        await busmicro_client.call("calc", endpoint, {"a": 1, "b": 0})

    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.origin) == (message, "calc")
    assert not caught.value.not_run


async def test_busmicro_names_what_a_foreign_service_has(peer, busmicro_client):
    """An endpoint that a foreign service lacks is `Unimplemented`, naming what comes close."""
    await peer.ask("serve")

    with pytest.raises(Unimplemented, match="did you mean add"):
        await busmicro_client.call("calc", "ad")


async def test_busmicro_lists_a_service_of_nats_own_framework(shop, peer, busmicro_client):
    """Discovery shows the foreign service beside busmicro's own, with subjects and metadata."""
    info = (await peer.ask("serve"))["info"]

    found = {record.name: record for record in await busmicro_client.bus.discovery.services()}

    calc = found["calc"]
    assert "shop" in found
    assert [(node.id, node.version) for node in calc.nodes] == [(info["id"], "1.2.3")]
    assert calc.nodes[0].metadata == {"language": "javascript"}
    add = calc.endpoint("add")
    assert (add.subject, add.queue_group, add.metadata) == ("math.add", "q", {"unit": "none"})
    assert [e.name for e in calc.endpoints] == ["add", "divide", "find", "odd", "crash"]


async def test_command_line_lists_a_service_of_nats_own_framework(shop, peer, busmicro_server):
    """`busmicro services --json` shows both."""
    await peer.ask("serve")

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "busmicro"),
        *("--server", busmicro_server.url, "services", "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20.0):
        output, _ = await process.communicate()

    assert process.returncode == 0
    assert {"shop", "calc"} <= {record["name"] for record in json.loads(output)}
