"""Make the corpora: run services on a real nats-server, and keep what they say to one another.

    python fuzz/record.py

Needs the `dev` extra.  What is in `fuzz/corpus` is replaced, but for what is named `found-…`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from google.protobuf.struct_pb2 import Struct
from pydantic import BaseModel

from busmicro import BusmicroError, Client, NatsServer, Reject, Service, Settings, Stream, Topic
from fuzz.messages import Message, write
from fuzz.served import Hello, Tick, served

HERE: Final = Path(__file__).parent
MOST_FILES: Final = 36
MOST_BYTES: Final = 2048
ORDERS: Final = Stream("ORDERS", subjects=["orders.>"])
TEXTS: Final = (
    *("0greeter", "0Greeter.hello", "01.2.0-rc.1+build5", "0shop.test", "1orders.{region}.paid"),
    *(
        "1orders.*",
        "1a.>",
        "2order-17",
        "2b\u00fccher 17%",
        "3X-Note: a b",
        "4@hourly",
        "4@every 1h5m",
    ),
    *(
        "40 */5 * * * *",
        "5nats://a:b@127.0.0.1:4222,tls://x",
        "5memory://x",
        "6first",
        "630m",
        "617",
    ),
    *("62026-05-01T12:00:00Z", '6{"a":1}', "6a.b=1\x00c:=[2]", "6X-A: b", '7{"a":[1,null,"x"]}'),
    *("7\x82\xa1a\x01\xa1b\xc3", "8a.*.> a.b.c.d", "8a.b a.b"),
)
LINES: Final = (
    "node 4 100\n>d1 hello\n^\n<hi\n>c 10 100 1 1\n.\nt5\n>q 10 100 2 2\n>e2\n$\n>c 10 100 3 2",
    "caller 2 20\n>a 10 100 0 0\n<hi\n-\n+\n>d2 x\n>d1 y\n>s3 \n!\nt0.1\n!\n~",
    "caller 8 64\n>a 4 100 0 0\n<a\n<b\n<c\n<d\n?\nt0.1\n>r 4 100 1 0\n>c 9 200 4 0\n.\n>s1 ",
    "node 2 9\n>p1 abc\n>p2 def\n^\n^\n>d3 g\n>x NATS/1.0\\nNats-Service-Error: x\\n\\n|{}",
    "node 1 1\n-\nt40",
    "caller 3 30\n>a 1 1 0 0\nt20",
    "caller 3 30\n>a 5 50 0 0\n>n ",
)
INFO: Final = b'{"name":"h","id":"x","endpoints":[{"name":"gone","subject":"%b"}]}'
"""An answer to `$SRV.INFO` for a client that looks for an endpoint."""


class Paid(BaseModel):
    """An event."""

    order: int
    note: str = ""


class _Everything:
    """A connection that hears all that is said, as it stands on the wire."""

    def __init__(self) -> None:
        self.wire: list[bytes] = []
        self.messages: list[Message] = []

    async def listen(self, url: str) -> None:
        """Listen until cancelled."""
        host, _, port = url.removeprefix("nats://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\n')
        writer.write(b"SUB > 1\r\nPING\r\n")
        while line := await reader.readline():
            words = line.split()
            if words[0] == b"PING":
                writer.write(b"PONG\r\n")
            if words[0] not in {b"MSG", b"HMSG"}:
                self.wire.append(line)
                continue
            body = await reader.readexactly(int(words[-1]) + 2)
            self.wire.append(line.replace(b" 1 ", b" b1 ", 1) + body)
            at = int(words[-2]) if words[0] == b"HMSG" else 0
            reply = words[3] if len(words) == (6 if at else 5) else b""
            self.messages.append(Message(words[1], reply, body[:at], body[at:-2]))


async def _numbers() -> AsyncIterator[Tick]:
    for n in range(3):
        yield Tick(n=n)


async def _lines() -> AsyncIterator[bytes]:
    for line in (b"a", b"b"):
        yield line


async def _calls(client: Client) -> None:
    """Call every endpoint, well and badly."""
    fields = Struct()
    fields.update({"a": 1, "b": [True, None]})
    for endpoint, message, returns in (
        ("hello", Hello(name="Ada", tags=[1, "x"]), Hello),
        ("raw", b"\x00\xff", bytes),
        ("nothing", None, None),
        ("proto", fields, Struct),
        ("fails", "no Zo\u00eb, 100% sure", None),
        ("hello", {"name": 5}, None),
        ("unknown", None, None),
        ("Debug.Health", None, None),
        ("Debug.Stats", None, None),
    ):
        with contextlib.suppress(BusmicroError):
            await client.call("fuzz", endpoint, message, returns=returns)
    for service in ("nobody", "fuzz"):
        with contextlib.suppress(BusmicroError):
            await client.with_options(content_type="application/msgpack", node="n1").call(
                service, "hello", {"name": "x"}, returns=Hello
            )


async def _streams(client: Client) -> None:
    """Open every kind of stream, and end it in several ways."""
    async with client.stream("fuzz", "count", Tick(n=3), returns=Tick) as ticks:
        async for _tick in ticks:
            pass
    async with client.stream("fuzz", "total", sends=Tick, returns=Tick) as stream:
        async for tick in _numbers():
            await stream.send(tick)
        await stream.result()
    async with client.stream("fuzz", "talk", sends=bytes, returns=bytes) as stream:
        async for line in _lines():
            await stream.send(line)
            await anext(stream)
    for endpoint in ("hello", "unknown"):
        with contextlib.suppress(BusmicroError):
            async with client.stream("fuzz", endpoint, Tick(n=3), returns=Tick):
                pass


async def _events(url: str) -> None:
    """Publish and handle events, one of which dies."""
    topic = Topic("orders.{region}.paid", Paid, stream=ORDERS)
    shop = Service("shop", url=url)
    handled = asyncio.Event()

    async def plain(event: Paid) -> None:
        if event.order == 1:
            raise Reject("no such order")
        if event.order == 2:
            handled.set()

    async def keyed(event: Paid) -> None:
        """Handle it."""

    async def lists(events: list[Paid]) -> None:
        """Handle them."""

    shop.subscribe(topic, group="plain")(plain)
    shop.subscribe(topic, group="keyed", key=lambda event: event.order)(keyed)
    shop.subscribe(topic, group="lists")(lists)
    async with shop:
        for order in range(3):
            await shop.publish(
                topic.format(region="eu"), Paid(order=order, note="x"), id=f"o-{order}"
            )
        async with asyncio.timeout(10):
            await handled.wait()
        await asyncio.sleep(0.5)  # for what is still on its way; nothing depends on it


async def hear() -> _Everything:
    """Run it all."""
    everything = _Everything()
    async with NatsServer(jetstream=True) as server:
        listening = asyncio.get_running_loop().create_task(everything.listen(server.url))
        async with served(Settings(nats_url=server.url)), Client(server.url) as client:
            await _calls(client)
            await _streams(client)
        await _events(server.url)
        listening.cancel()
    return everything


def sort(everything: _Everything) -> dict[str, list[bytes]]:
    """Make inputs of what was heard."""
    found: dict[str, list[bytes]] = defaultdict(list)
    found["fastpath"] = [b"\x07" + piece for piece in everything.wire]
    found["fastpath"] += [
        b"\x40" + b"".join(everything.wire[at : at + 4]) for at in range(0, 60, 4)
    ]
    found["texts"] = [text.encode("utf-8", "surrogateescape") for text in TEXTS]
    found["frames"] = [text.encode() for text in LINES]
    for message in everything.messages:
        for target, data in _uses(message):
            found[target].append(data)
    for target, data in _exchanges(everything.messages):
        found[target].insert(0, data)
    found["codecs"] += _payloads()
    for subject in (b"a.b", b"$JS.API.INFO"):
        found["replies"].append(b"4" + write([Message(payload=INFO % subject)]))
    return found


def _uses(message: Message) -> list[tuple[str, bytes]]:  # noqa: C901, PLR0911 - a table
    """Tell for which targets one message is an input."""
    subject, reply, header, payload = message
    answer = write([Message(b"", reply, header, payload)])
    if subject.startswith((b"rpc.", b"node.", b"cancel.", b"$SRV.")):
        return [("requests", write([message])), ("errors", write([message]))]
    if reply.startswith(b"$JS.ACK."):
        group = next((n for n, g in enumerate((b"plain", b"keyed", b"lists")) if g in reply), 0)
        return [("events", b"%d%b" % (group, write([message]))), ("records", b"5" + answer)]
    if subject.startswith(b"$KV."):
        key = subject.split(b".", 2)[2]
        kind = b"0" if key.startswith(b"node.") else b"1"
        return [("records", kind + write([message._replace(subject=key)]))]
    if subject.startswith(b"dlq."):
        return [("records", b"4" + write([message]))]
    if b'"io.nats.micro' in payload:
        return [("records", b"2" + answer)]
    if b'"io.nats.jetstream' in payload or b'"stream":' in payload:
        return [("records", b"3" + answer)]
    if subject.startswith(b"_INBOX.") and b"Nats-Service-Error" in header:
        return [("errors", answer), ("replies", b"1" + answer)]
    if subject.startswith(b"_INBOX.") and subject.count(b".") == 2:
        return [("replies", b"0" + answer), ("errors", answer)]
    return []


def _exchanges(messages: list[Message]) -> list[tuple[str, bytes]]:
    """Make inputs of whole streams: what the node got, and what its caller got."""
    found = []
    for opening in messages:
        if b"Bus-Stream:" not in opening.header:
            continue
        caller = opening.reply + b"."
        to_caller = [
            m._replace(subject=m.subject[len(caller) :])
            for m in messages
            if m.subject.startswith(caller)
        ]
        node = next((m.reply for m in to_caller if m.subject == b"a"), b"?") + b"."
        to_node = [
            m._replace(subject=b"@0." + m.subject[len(node) :])
            for m in messages
            if m.subject.startswith(node)
        ]
        found.append(("requests", write([opening, *to_node])))
        elsewhere = (opening._replace(reply=own) for own in (b"my.orders", b"orders"))
        found.extend(("requests", write([message])) for message in elsewhere)
        found.append(("replies", b"5" + write(to_caller)))
        for who, frames in ((b"node", to_node), (b"caller", to_caller)):
            lines = [b">%b %b" % (m.subject.removeprefix(b"@0."), m.payload) for m in frames]
            found.append(("frames", b"\n".join([who + b" 256 100000", *lines])))
    return found


def _payloads() -> list[bytes]:
    """Write a message of each type that the target `codecs` knows."""
    from fuzz.targets import codecs

    return [bytes([n]) + coder.encode(codecs.SAMPLES[n]) for n, coder in enumerate(codecs.CODERS)]


def main() -> None:
    """Replace the corpora."""
    for target, inputs in sort(asyncio.run(hear())).items():
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        small = [data for data in dict.fromkeys(inputs) if len(data) <= MOST_BYTES][:MOST_FILES]
        for data in small:
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
        print(f"{target:10} {len(small):3} of {len(inputs)}")


if __name__ == "__main__":
    main()
