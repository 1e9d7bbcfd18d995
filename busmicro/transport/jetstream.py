"""JetStream by its JSON API: is it there, which subjects does it keep, store this.

nats-py's own JetStream code is not used: its calls wait out their time when the connection drops.

Source: NATS ADR-1 (JSON API), ADR-44 (API levels).
"""

from __future__ import annotations

import asyncio
import logging
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json, to_json

from busmicro.errors import (
    CallError,
    Code,
    DataLoss,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    NoResponders,
    Unavailable,
    code_from_http,
)
from busmicro.headers import parse
from busmicro.transport.base import Transport
from busmicro.transport.replies import Replies, Reply

log = logging.getLogger("busmicro.transport")

API: Final = "$JS.API."
TIMEOUT: Final = 3.0
_ASK_EVERY: Final = 1.0
_STALL: Final = 1.0
_NOT_ENABLED: Final = frozenset({10039, 10076})
STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
TOO_FEW_SERVERS: Final = frozenset({10074, 10005, 10023})
"""Answers to a wish for replicas: no cluster, or not enough of one."""

_CODES: Final = {
    10008: Code.UNAVAILABLE,  # no leader at the moment
    10023: Code.RESOURCE_EXHAUSTED,
    10039: Code.UNAVAILABLE,
    10047: Code.RESOURCE_EXHAUSTED,
    NAME_IN_USE: Code.ALREADY_EXISTS,
    10071: Code.ABORTED,  # wrong last sequence
    10076: Code.UNAVAILABLE,
    10077: Code.RESOURCE_EXHAUSTED,
    10164: Code.ABORTED,
    10166: Code.FAILED_PRECONDITION,  # no time to live on this stream
    10167: Code.RESOURCE_EXHAUSTED,
}


def server_error(error: Mapping[str, Any], subject: str) -> CallError:
    """Turn an error of the JetStream API into ours; `details` holds the server's number.

    Args:
        error: The `error` object of the answer.
        subject: What was asked.
    """
    number = whole(error.get("err_code"))
    code = _CODES.get(number) or code_from_http(whole(error.get("code")) or 500)
    text = f"JetStream refuses {subject}: {error.get('description', 'no reason given')} ({number})"
    return CallError.of(code, text, details=[{"err_code": number}])


def whole(said: object) -> int:
    """Return a whole number of an answer; 0 if it is none."""
    return said if isinstance(said, int) else 0


def err_code(error: CallError) -> int:
    """Return the server's number of an error of the JetStream API; 0 if it has none."""
    first = error.details[0] if error.details else None
    return whole(first.get("err_code")) if isinstance(first, dict) else 0


def read_answer(payload: bytes, subject: str) -> dict[str, Any]:
    """Read what JetStream says.

    Args:
        payload: Its answer.
        subject: What was asked.

    Raises:
        CallError: The server's error, as `server_error` has it.
        DataLoss: It is not JSON.
    """
    try:
        answer = from_json(payload)
    except ValueError as wrong:
        raise DataLoss(f"the answer to {subject} is not JSON") from wrong
    if not isinstance(answer, dict):
        raise DataLoss(f"the answer to {subject} is not a JSON object")
    if isinstance(answer.get("error"), dict):
        raise server_error(answer["error"], subject)
    return answer


def status_of(header: bytes) -> int:
    """Return the status of a header block; 0 for that of a message."""
    number = header[9:12]
    return int(number) if header.startswith(b"NATS/1.0 ") and number.isdigit() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message as a stream keeps it."""

    subject: str
    """Where it was published."""
    sequence: int
    """Its number in the stream."""
    header: bytes
    """Its header block, or empty."""
    payload: bytes
    """The message."""
    stored: str
    """When, RFC 3339."""


def read_stored(answer: Mapping[str, Any], stream: str) -> StoredMessage:
    """Read a message out of the answer to `STREAM.MSG.GET`.

    Raises:
        DataLoss: There is none in it.
    """
    try:
        found = answer["message"]
        return StoredMessage(
            subject=str(found["subject"]),
            sequence=int(found["seq"]),
            header=b64decode(found.get("hdrs") or b""),
            payload=b64decode(found.get("data") or b""),
            stored=str(found.get("time", "")),
        )
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as wrong:
        raise DataLoss(f"the answer to STREAM.MSG.GET.{stream} holds no message") from wrong


class JetStream:
    """The JetStream of the account that this connection belongs to."""

    def __init__(self, transport: Transport, replies: Replies) -> None:
        self.transport = transport
        self.replies = replies
        self.level = 0
        """What its API can do, known after `available`: 0 before nats-server 2.11, 1 for 2.11."""

    async def available(self, *, patience: float = TIMEOUT) -> bool:
        """Tell whether JetStream is enabled for this account.

        Args:
            patience: Seconds for it to answer.

        Raises:
            Unavailable: Nobody can tell: the connection is down, or JetStream has no leader.
            PermissionDenied: This client may not ask.
            DeadlineExceeded: No answer in time.
        """
        try:
            info = await self.ask("INFO", patience=patience)
        except NoResponders:
            return False
        except CallError as failure:
            if err_code(failure) in _NOT_ENABLED:
                return False
            raise
        api = info.get("api")
        self.level = whole(api.get("level")) if isinstance(api, dict) else 0
        return True

    async def api(
        self, subject: str, body: object = None, *, timeout: float = TIMEOUT
    ) -> dict[str, Any]:
        """Ask the JetStream API.

        Args:
            subject: What comes after `$JS.API.`.
            body: A JSON value; None for an empty request.
            timeout: Seconds to wait.

        Returns:
            The answer.

        Raises:
            CallError: The server's error as the class that fits; `err_code` gives its number.
            NoResponders: JetStream is not enabled.
            Disconnected: The connection is down or dropped.
            PermissionDenied: This client may not ask that.
            DeadlineExceeded: No answer in time; it may or may not have been done.
        """
        payload = b"" if body is None else to_json(body)
        asked = API + subject
        if not asked.isprintable() or " " in asked:
            raise InvalidArgument(f"{asked!r} has blanks in a name", not_run=True)
        _header, answer = await self.replies.ask(asked.encode(), payload, timeout=timeout)
        return read_answer(answer, asked)

    async def ask(
        self, subject: str, body: object = None, *, patience: float = TIMEOUT
    ) -> dict[str, Any]:
        """Ask the JetStream API what may be asked twice, each second again until it answers.

        In a cluster nobody answers for a stream or a consumer that has no leader: not yet, as it is
        just being made, or not any more.  What was asked meanwhile is lost, and so are the answers
        to all but one of those who make or change the same thing at once.

        Args:
            subject: What comes after `$JS.API.`.
            body: A JSON value; None for an empty request.
            patience: Seconds in all.

        Returns:
            The answer.

        Raises:
            CallError: As `api`.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + patience
        while True:
            left = end - loop.time()
            try:
                return await self.api(subject, body, timeout=min(_ASK_EVERY, left))
            except DeadlineExceeded:
                if left <= _ASK_EVERY:
                    raise
                log.info("no answer to %s within %g s, asked again", subject, _ASK_EVERY)

    async def publish(
        self, subject: str, payload: bytes, header: bytes = b"", *, timeout: float = TIMEOUT
    ) -> int:
        """Publish to a stream and wait until it is stored.

        Args:
            subject: A subject that a stream keeps.
            payload: The message.
            header: A header block, or empty.
            timeout: Seconds to wait for the acknowledgement.

        Returns:
            Its sequence number in the stream.

        Raises:
            CallError: The server's error as the class that fits. Nothing was stored.
            NoResponders: No stream keeps this subject, and nobody listens to it.
            DeadlineExceeded: No acknowledgement in time; it may or may not be stored.
        """
        _header, answer = await self.replies.ask(subject.encode(), payload, header, timeout=timeout)
        return whole(read_answer(answer, subject).get("seq"))

    async def request(self, subject: str, payload: bytes, *, timeout: float = TIMEOUT) -> Reply:
        """Ask for one reply, and return it as it is; raises as `Replies.request`."""
        return await self._request(subject, payload, b"", timeout)

    async def _request(self, subject: str, payload: bytes, header: bytes, timeout: float) -> Reply:
        deadline = asyncio.get_running_loop().time() + timeout
        return await self.replies.request(subject.encode(), payload, header, deadline=deadline)

    async def last_message(self, stream: str, subject: str) -> Reply:
        """Return header block and payload of the latest message on a subject of a stream.

        Raises:
            NotFound: There is none.
            CallError: As `api`.
        """
        found = await self.message(stream, {"last_by_subj": subject})
        return found.header, found.payload

    async def message(self, stream: str, which: Mapping[str, object]) -> StoredMessage:
        """Return a message as a stream keeps it, read from its leader.

        Args:
            stream: The stream.
            which: `{"seq": 17}`, `{"last_by_subj": "a.b"}`, or `{"seq": 17, "next_by_subj": "a.>"}`
                for the first from there on.

        Raises:
            NotFound: There is none.
            CallError: As `api`.
        """
        answer = await self.ask(f"STREAM.MSG.GET.{stream}", which)
        return read_stored(answer, stream)

    async def get_many(
        self, stream: str, request: Mapping[str, object]
    ) -> tuple[int, list[Reply], dict[str, str]]:
        """Read many messages of a stream with one request; nats-server 2.11 or newer.

        Args:
            stream: One that allows direct access.
            request: As ADR-31 has it.

        Returns:
            The status that ends them, the messages, and the headers of the end.

        Raises:
            NoResponders: The stream is not there, or allows no direct access.
            Disconnected: The connection is down.
            Unavailable: The answers stopped before their end.
        """
        if not self.transport.connected:
            raise Disconnected("not connected to NATS", not_run=True)
        subject = f"{API}DIRECT.GET.{stream}"
        arrived: asyncio.Queue[Reply] = asyncio.Queue()
        found: list[Reply] = []
        async with self.replies.many(arrived.put_nowait) as inbox:
            self.transport.publish(subject.encode(), to_json(request), inbox)
            while True:
                reply = await _next(arrived, subject)
                status = status_of(reply[0])
                if status == 503:
                    raise NoResponders(subject)
                if status:
                    return status, found, parse(reply[0])
                found.append(reply)

    async def stream_subjects(self) -> list[str]:
        """List the subjects that the account's streams keep, wildcards and all.

        Raises:
            CallError: As `api`.
        """
        found: list[str] = []
        seen, total = 0, 1
        while seen < total:
            page = await self.ask("STREAM.LIST", {"offset": seen})
            streams = page.get("streams") or []
            for stream in streams:
                found.extend(stream["config"].get("subjects") or [])
            seen += len(streams)
            total = int(page.get("total", 0)) if streams else seen
        return found


async def _next(arrived: asyncio.Queue[Reply], subject: str) -> Reply:
    try:
        async with asyncio.timeout(_STALL):
            return await arrived.get()
    except TimeoutError as late:
        raise Unavailable(f"no answer from {subject} within {_STALL} s") from late
