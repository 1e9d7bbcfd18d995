"""What a stranger puts on the bus: requests that are wrong in every way somebody has thought of."""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from fuzz.served import NODE, UNARY

_VERSION: Final = b"NATS/1.0\r\n"
_HEADERS: Final = (
    b"",
    _VERSION + b"\r\n",
    _VERSION + b"Content-Type: no/such\r\n\r\n",
    _VERSION + b"Content-Type: application/protobuf\r\n\r\n",
    _VERSION + b"Content-Type: \xff\xfe\r\nX-\xc3\x28: \x80\r\n\r\n",
    _VERSION + b"Bus-Timeout: -1\r\n\r\n",
    _VERSION + b"Bus-Timeout: 1e9\r\n\r\n",
    _VERSION + b"Bus-Timeout: 99999999999999999999\r\n\r\n",
    _VERSION + b"Bus-Stream: soon\r\n\r\n",
    _VERSION + b"Nats-Service-Error-Code: 200\r\ntraceparent: 00-zz\r\n\r\n",
    _VERSION + b"no colon at all\r\n: no name\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    _VERSION + b"X-Huge: " + b"h" * 30_000 + b"\r\n\r\n",
    _VERSION + b"".join(b"X-%d: many\r\n" % number for number in range(500)) + b"\r\n",
)
_PAYLOADS: Final = (
    b"",
    b"null",
    b"{",
    b'{"name":',
    b'{"name": 1, "tags": "no list"}',
    b'{"name": "Ann", "tags": [{}]}',
    b"[" * 20_000,
    b'{"a":' * 5_000,
    b'"\xff\xfe"',
    b'"\\ud800"',
    b"1e999",
    b"NaN",
    b"\x00" * 1000,
    b'{"name": "Ann"}',
)
FORBIDDEN: Final = (
    b"$SYS.REQ.SERVER.PING",
    b"$JS.API.STREAM.DELETE.ORDERS",
    b"$KV.some.key",
    b"rpc.fuzz.hello",
    b"node.fuzz.n1.hello",
    b"cancel.fuzz",
    b"orders.placed",
    b"_INBOXES.mine",
    b"_inbox.mine",
    b"somebody",
)


class Request(NamedTuple):
    """One request of a stranger."""

    subject: bytes
    reply: bytes
    header: bytes
    payload: bytes
    is_owed: bool
    """Must it be answered, once?"""


class Stranger:
    """Thinks of requests, the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._number = 0

    def request(self) -> Request:
        """Think of the next one."""
        chance = self._chance
        self._number += 1
        endpoint = chance.choice([*UNARY, "count", "total", "talk", "no.such", "a.b"])
        where = chance.choice(["rpc.fuzz.{}", f"node.fuzz.{NODE}.{{}}"]).format(endpoint)
        subject = b"cancel.fuzz" if chance.random() < 0.03 else where.encode()
        may_be_told = chance.random() < 0.7
        inbox = b"_INBOX.stranger.%d" % self._number
        reply = inbox if may_be_told else chance.choice([b"", *FORBIDDEN])
        is_call = endpoint in UNARY and subject != b"cancel.fuzz"
        return Request(subject, reply, self._header(), self._payload(), may_be_told and is_call)

    def _header(self) -> bytes:
        chosen = self._chance.choice(_HEADERS)
        if chosen and self._chance.random() < 0.2:
            noise = self._chance.randbytes(20).translate(None, b"\r\n")
            return _VERSION + b"X-Noise: " + noise + b"\r\n\r\n"
        return chosen

    def _payload(self) -> bytes:
        if self._chance.random() < 0.3:
            return self._chance.randbytes(self._chance.randrange(200))
        return self._chance.choice(_PAYLOADS)
