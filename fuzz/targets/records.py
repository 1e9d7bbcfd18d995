"""What servers and other services tell of themselves: read, or skipped, and never anything else.

Input: a digit that says what it is taken for, then a message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pydantic_core import from_json

from busmicro.delivery import acks_of, attempt_of, read_delivery, sequence_of
from busmicro.errors import CallError, DataLoss
from busmicro.headers import Headers
from busmicro.pubsub.deadletters import _lines, _read, _stored
from busmicro.registry.base import Complaints, Description, Node, fingerprint
from busmicro.registry.kv import (
    decode_description,
    decode_node,
    encode_description,
    encode_node,
)
from busmicro.registry.srv import _Info, _read_endpoint, _read_stats, _records, _Stats
from busmicro.rpc.large import read_claim, write_claim
from busmicro.transport.buckets import _seconds, is_gone
from busmicro.transport.errors import denied_subject, hide_secrets
from busmicro.transport.jetstream import err_code, read_answer, read_stored, status_of
from busmicro.transport.subjects import may_be_named
from fuzz import messages
from fuzz.messages import Message
from fuzz.wrong import listen_for_complaints, require

_LARGEST: Final = 100_000
complaints = listen_for_complaints()
_said: Final = Complaints()


def _heartbeat(message: Message) -> None:
    key = message.subject.decode("utf-8", "replace")
    try:
        node, ttl = decode_node(key, message.payload)
    except ValueError as wrong:
        _said.about(key, wrong)
        return
    require(isinstance(node, Node) and 0 < ttl <= 86_400, "no heartbeat", node, ttl)
    require(decode_node(key, encode_node(node, ttl)) == (node, ttl), "written otherwise", node)


def _description(message: Message) -> None:
    key = message.subject.decode("utf-8", "replace")
    try:
        names, description = decode_description(key, message.payload)
    except ValueError as wrong:
        _said.about(key, wrong)
        return
    require(isinstance(description, Description), "no description", description)
    fingerprint(description)
    again = decode_description(key, encode_description(description, _LARGEST))[1]
    same = again == description or "nan" in repr(description) or "inf" in repr(description)
    require(same, "written otherwise", names, description, again)


def _srv(message: Message) -> None:
    for kind in (_Info, _Stats):
        try:
            found = kind.model_validate_json(message.payload)
        except ValueError:
            continue
        found.node()
        if isinstance(found, _Stats):
            _read_stats(found)
        else:
            _records([found, found])
            for endpoint in found.endpoints or ():
                record = _read_endpoint(endpoint)
                require(record.timeout is None or record.timeout > 0, "timeout", record)
                may_be_named(record.subject)


def _answer(message: Message) -> None:
    status = status_of(message.header)
    require(0 <= status <= 999, "status", status)
    is_gone(message.header, message.payload)
    try:
        read_stored(read_answer(message.payload, "API"), "S")
    except CallError as failure:
        require(str(failure), "an error that says nothing", failure)
        err_code(failure)


def _dead_letter(message: Message) -> None:
    try:
        stored = read_stored(from_json(message.payload), "S")
    except (DataLoss, ValueError):
        stored = _stored(message.header, message.payload)
    letter = _read(stored)
    require(letter.died.tzinfo is not None, "a moment without a zone", letter.died)
    block = _lines([*letter.headers.items()])
    require(block.isascii() and block.count(b"\r\n") == len(letter.headers), "headers", block)


def _ack(message: Message) -> None:
    ack = messages.word(message.reply)
    if acks_of("ORDERS", "billing").fullmatch(ack):
        delivery = read_delivery(ack, Headers(message.header))
        require(delivery.stream == "ORDERS", "another stream", delivery)
        require(delivery.consumer == "billing", "another consumer", delivery)
        require(delivery.attempt == attempt_of(ack), "attempt", delivery)
        require(delivery.sequence == sequence_of(ack), "sequence", delivery)


def _claim(message: Message) -> None:
    try:
        claim = read_claim(message.payload)
    except CallError:
        return
    require(read_claim(write_claim(claim)) == claim, "written otherwise", claim)


def _text(message: Message) -> None:
    text = message.payload.decode("utf-8", "replace")
    _seconds(text)
    denied = denied_subject(text)
    require(denied is None or denied[0] in {"publish", "subscription"}, "denied", denied)
    require("@" not in hide_secrets("nats://a:b@" + text.partition("@")[0]), "a secret", text)


_READERS: Final[tuple[Callable[[Message], None], ...]] = (
    _heartbeat,
    _description,
    _srv,
    _answer,
    _dead_letter,
    _ack,
    _claim,
    _text,
)


def one(data: bytes) -> None:
    """Read what an input says."""
    if data[:1].isdigit() and int(data[:1]) < len(_READERS):
        for message in messages.read(data[1:])[:1]:
            _READERS[int(data[:1])](message)
    complaints.require_none()
