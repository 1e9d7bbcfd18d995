"""A megabyte of anything is read in a moment: nobody stops a process by what it has to read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from busmicro.codecs import JSON, MSGPACK, Coders
from busmicro.delivery import acks_of
from busmicro.errors import BusmicroError
from busmicro.headers import FIND_TIMEOUT, VERSION_LINE, Headers, decode_text, find, parse
from busmicro.pubsub.topic import Topic
from busmicro.registry.kv import decode_description, decode_node
from busmicro.registry.srv import _Info
from busmicro.rpc.answering import read_asked
from busmicro.rpc.frames import read_standing, read_window
from busmicro.rpc.wire import decode_error
from busmicro.transport import Subscription, check_version, matches, may_be_named, read_answer
from busmicro.transport.errors import denied_subject, hide_secrets
from busmicro.transport.fastpath import FastPath
from busmicro.transport.subjects import check_endpoint, check_namespace

MEGABYTE = 1024 * 1024
BLOCK = VERSION_LINE + b"".join(b"h%x:\r\n" % n for n in range(110_000)) + b"\r\n"


def learn(block: bytes) -> None:
    """What a caller does with the headers of a reply."""
    known = Headers({"A": "1"})
    known.update(Headers(block))
    assert known["H1"] == ""


def slice_bytes(data: bytes) -> None:
    """What the process does with what a server sends."""

    async def feed() -> None:
        nobody: dict[bytes, Subscription] = {}
        path = FastPath(nobody, on_denied=str, on_lost=id, max_waiting_bytes=1)
        path.data_received(data)

    asyncio.run(feed())


def text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "replace"))


READERS: dict[str, Callable[[bytes], object]] = {
    "headers of a reply": learn,
    "header block": parse,
    "one header": lambda data: find(data, data.lower(), FIND_TIMEOUT),
    "request": read_asked,
    "error": lambda data: decode_error(VERSION_LINE + data, data, "s"),
    "standing": read_standing,
    "window": text(read_window),
    "wire": slice_bytes,
    "json": Coders(list[int | str | None]).require(JSON).decode,
    "msgpack": Coders(list[int | str | None]).require(MSGPACK).decode,
    "answer": lambda data: read_answer(data, "s"),
    "heartbeat": lambda data: decode_node("node.a.b", data),
    "description": lambda data: decode_description("service.a.b", data),
    "srv": _Info.model_validate_json,
    "version": text(check_version),
    "endpoint": text(check_endpoint),
    "namespace": text(check_namespace),
    "topic": text(lambda subject: Topic(subject, int)),
    "subject": text(may_be_named),
    "pattern": text(lambda subject: matches(subject, subject)),
    "ack": acks_of("ORDERS", "billing").fullmatch,
    "denied": text(denied_subject),
    "url": text(hide_secrets),
    "percent": text(decode_text),
}
HOSTILE: dict[str, bytes] = {
    "names": BLOCK,
    "digits": b"9" * MEGABYTE,
    "brackets": b"[" * MEGABYTE,
    "nothing right": b"[[]" + b",[]" * (MEGABYTE // 3) + b"]",
    "lines": b"\r\n" * (MEGABYTE // 2),
    "words": b"a." * (MEGABYTE // 2),
    "slashes": b"//a" * (MEGABYTE // 3),
    "percents": b"%C3" * (MEGABYTE // 3),
    "versions": b"1.0.0-" + b"1a." * (MEGABYTE // 3),
    "acks": b"$JS.ACK." + b"ORDERS.billing.1." * (MEGABYTE // 17),
    "denials": b'permissions violation for publish to "' * (MEGABYTE // 38),
    "blanks": b" " * MEGABYTE,
    "messages": b"MSG a b1 1\r\nx\r\n" * (MEGABYTE // 15),
}


@pytest.mark.timeout(30)  # a moment on a busy machine; what takes a square of the time takes hours
@pytest.mark.parametrize("reader", READERS)
def test_a_megabyte_is_read_in_a_moment(reader: str) -> None:
    """No reader takes the square of the size, whatever it has to read."""
    for data in HOSTILE.values():
        if reader == "headers of a reply" and data is not BLOCK:
            continue
        try:
            READERS[reader](data)
        except (BusmicroError, ValueError) as refused:
            assert str(refused)  # noqa: PT017 - either way is fine, but in time
