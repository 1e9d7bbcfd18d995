"""Buckets of keys on JetStream: what `nats kv` reads and writes too.

nats-py's own key-value code is not used: its watcher goes blind after a server restart, and it
takes the marker of an expired key for a value.

Source: NATS ADR-8 (key-value), ADR-31 (direct get), ADR-43 and ADR-48 (time to live).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias, TypeVar

from busmicro.errors import (
    CallError,
    DeadlineExceeded,
    FailedPrecondition,
    NoResponders,
    NotFound,
    SetupError,
    Unavailable,
)
from busmicro.headers import VERSION_LINE, encode_lines, parse
from busmicro.transport.base import Subscription
from busmicro.transport.jetstream import (
    API,
    NAME_IN_USE,
    STREAM_NOT_FOUND,
    TIMEOUT,
    TOO_FEW_SERVERS,
    JetStream,
    err_code,
    status_of,
)
from busmicro.transport.replies import Reply

log = logging.getLogger("busmicro.transport")

T = TypeVar("T")

_PAGE: Final = 1000
_TTL_LEVEL: Final = 1
"""The API level since when keys may have their own time to live: nats-server 2.11."""
_MARKER_TTL: Final = 60.0
_MOST_DIGITS: Final = 20
_ATTEMPT: Final = 1.0
_LEADER_PAUSE: Final = 0.02
"""Seconds between looks for the next leader of a bucket on three servers; 40 to 130 ms in all."""

_BUCKET = re.compile(r"[A-Za-z0-9_-]+")
_KEY = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")

OnEntry: TypeAlias = Callable[[str, bytes | None], None]
"""Called with a key and its new value, None if it is gone; runs in the read loop."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a bucket holds for a key."""

    value: bytes
    """Never empty."""
    revision: int
    """Grows with every change to the bucket."""
    age: float
    """Seconds since it was written, by the server's clock."""


class Bucket:
    """A key-value bucket in memory, one value a key; `nats kv` reads it too.

    `open` it before anything else, and again after `forget`.

    Args:
        jetstream: Where.
        name: Letters, digits, `_` and `-`.
        oldest: Seconds a value lives on servers before 2.11, which know no time to live a key.
    """

    def __init__(self, jetstream: JetStream, name: str, *, oldest: float = 3600.0) -> None:
        if not _BUCKET.fullmatch(name):
            raise SetupError(f"bucket name {name!r}: use letters, digits, _ and -")
        self.name = name
        self.stream = f"KV_{name}"
        self.created = ""
        """When it was made, empty if it is not there; another moment means another bucket."""
        self._jetstream = jetstream
        self._prefix = f"$KV.{name}."
        self._oldest = oldest
        self._bound = False
        self._epoch = 0.0
        self._said_reduced = False

    # --- making and binding ---------------------------------------------------------------------

    async def open(self, *, create: bool = True) -> bool:
        """Find the bucket, or make it; free of charge until `forget`.

        Args:
            create: Make it if it is not there.

        Returns:
            Is it there?

        Raises:
            Unavailable: JetStream is not enabled, or has no leader.
            FailedPrecondition: Somebody made it with settings that do not do; the text names them.
            CallError: As `JetStream.api`.
        """
        if self._bound:
            return True
        if not await self._jetstream.available():
            raise Unavailable(
                "JetStream is not enabled on this server: start it with nats-server -js",
                not_run=True,
            )
        info = await self._find()
        if info is None and create:
            info = await self._create()
        if info is None:
            self.created = ""
            return False
        self._require_fit(info["config"])
        self.created = str(info.get("created", ""))
        if "ts" in info:
            self._epoch = _seconds(str(info["ts"])) - asyncio.get_running_loop().time()
        self._bound = True
        return True

    def forget(self) -> None:
        """Look again at the next `open`: after a lost connection it may be gone."""
        self._bound = False

    async def _find(self) -> dict[str, Any] | None:
        try:
            return await self._jetstream.ask(f"STREAM.INFO.{self.stream}")
        except NotFound as failure:
            if err_code(failure) != STREAM_NOT_FOUND:
                raise
            return None

    async def _create(self) -> dict[str, Any] | None:
        """Make it on three servers if there are so many, else on one."""
        try:
            return await self._create_on(3)
        except CallError as failure:
            if err_code(failure) == NAME_IN_USE:  # somebody was faster
                return await self._find()
            if err_code(failure) not in TOO_FEW_SERVERS:
                raise
        return await self._create_on(1)

    async def _create_on(self, replicas: int) -> dict[str, Any]:
        config = {
            "name": self.stream,
            "subjects": [f"{self._prefix}>"],
            "max_msgs_per_subject": 1,
            "storage": "memory",
            "discard": "new",
            "num_replicas": replicas,
            "allow_direct": True,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "metadata": {"busmicro.made-by": "busmicro"},
        }
        if self._per_key_ttl:
            config["allow_msg_ttl"] = True
        else:
            config["max_age"] = int(self._oldest * 1e9)
            self._say_reduced()
        return await self._jetstream.api(f"STREAM.CREATE.{self.stream}", config)

    @property
    def _per_key_ttl(self) -> bool:
        return self._jetstream.level >= _TTL_LEVEL

    def _say_reduced(self) -> None:
        if not self._said_reduced:
            self._said_reduced = True
            log.warning(
                "nats-server is older than 2.11 and cannot forget single keys: bucket %s keeps "
                "every key for %.0f s, readers go by its age",
                self.name,
                self._oldest,
            )

    def _require_fit(self, config: Mapping[str, Any]) -> None:
        wanted: dict[str, object] = {"allow_direct": True}
        if self._per_key_ttl:
            wanted["allow_msg_ttl"] = True
        wrong = [
            f"{name} is {config.get(name, False)!r} and must be {value!r}"
            for name, value in wanted.items()
            if config.get(name, False) != value
        ]
        if f"{self._prefix}>" not in (config.get("subjects") or []):
            wrong.append(f"subjects are {config.get('subjects')!r} and must have {self._prefix}>")
        if wrong:
            raise FailedPrecondition(
                f"stream {self.stream} exists with other settings: {'; '.join(wrong)}; "
                f"delete it (nats kv del {self.name}) and it is made anew",
                not_run=True,
            )

    # --- writing --------------------------------------------------------------------------------

    async def put(self, key: str, value: bytes, *, ttl: float | None = None) -> int:
        """Write a value.

        Args:
            key: Words with dots between.
            value: Not empty.
            ttl: Seconds after which the server forgets it, 1 or more; None for never.

        Returns:
            Its revision.

        Raises:
            CallError: As `JetStream.publish`.
        """
        header = b""
        if ttl is not None and self._per_key_ttl:
            header = _block(("Nats-TTL", _ttl(ttl)))
        return await self._publish(self._subject(key), value, header)

    async def delete(self, key: str) -> None:
        """Delete a key; not an error if it is not there.

        Raises:
            CallError: As `JetStream.publish`.
        """
        lines = [("KV-Operation", "DEL")]
        if self._per_key_ttl:  # or the markers of everybody who ever was would pile up
            lines.append(("Nats-TTL", _ttl(_MARKER_TTL)))
        await self._publish(self._subject(key), b"", _block(*lines))

    async def _publish(self, subject: str, value: bytes, header: bytes) -> int:
        """Write until it is stored, as the bucket may have no leader at the moment.

        A leader that steps down swallows what it has just taken. To write that again does no harm:
        a bucket keeps the last value only.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + TIMEOUT
        while True:
            try:
                return await self._jetstream.publish(subject, value, header, timeout=_ATTEMPT)
            except NoResponders:
                if loop.time() >= give_up_at or not await self._is_there():
                    raise
            except DeadlineExceeded:
                if loop.time() >= give_up_at:
                    raise
            await asyncio.sleep(_LEADER_PAUSE)

    async def _is_there(self) -> bool:
        """Tell whether the bucket exists; without a leader nobody can say that it does not."""
        try:
            return await self._find() is not None
        except NoResponders:  # there is no JetStream any more
            return False
        except CallError:
            return True

    def _subject(self, key: str) -> str:
        if not _KEY.fullmatch(key):
            raise SetupError(f"key {key!r}: use letters, digits and -/_= , dots between words")
        return self._prefix + key

    # --- reading --------------------------------------------------------------------------------

    async def get(self, key: str) -> Entry | None:
        """Read a key; None if it is not there.

        Raises:
            Unavailable: The bucket cannot be read now.
            CallError: As `JetStream.api`.
        """
        return (await self._get(self._subject(key))).get(key)

    async def _get(self, subject: str) -> dict[str, Entry]:
        asked = f"{API}DIRECT.GET.{self.stream}.{subject}".encode()
        reply = await self._from_replicas(
            lambda: self._jetstream.replies.ask(asked, b"", timeout=TIMEOUT)
        )
        return self._entries([reply]) if not status_of(reply[0]) else {}

    async def _get_many(
        self, request: Mapping[str, object]
    ) -> tuple[int, list[Reply], dict[str, str]]:
        return await self._from_replicas(lambda: self._jetstream.get_many(self.stream, request))

    async def _from_replicas(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, and read again while no replica listens, as when the bucket has just been made."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + TIMEOUT
        while True:
            try:
                return await read()
            except NoResponders:
                if loop.time() >= give_up_at or not await self._is_there():
                    raise
            await asyncio.sleep(_LEADER_PAUSE)

    async def snapshot(self, *patterns: str) -> dict[str, Entry]:
        """Read all keys under some patterns at one moment, with one request.

        Args:
            patterns: Keys with `*` and `>`; none for all keys.

        Returns:
            What is there, by key.

        Raises:
            Unavailable: The bucket is not there or cannot be read now.
            CallError: As `JetStream.api`.
        """
        wanted = [self._prefix + pattern for pattern in patterns or (">",)]
        if not self._per_key_ttl:
            return await self._one_by_one(wanted)
        status, replies, _end = await self._get_many({"multi_last": wanted})
        if status == 413:  # more keys than the server gives at once
            replies = [reply for pattern in wanted for reply in await self._pages(pattern)]
        return self._entries(replies)

    async def _pages(self, pattern: str) -> list[Reply]:
        """Read in the order of writing; a key that is rewritten meanwhile comes once more."""
        found: list[Reply] = []
        start, pending = 1, 1
        while pending:
            status, replies, end = await self._get_many(
                {"seq": start, "next_by_subj": pattern, "batch": _PAGE}
            )
            found.extend(replies)
            if status != 204:
                break
            start = _number(end, "Nats-Last-Sequence") + 1
            pending = _number(end, "Nats-Num-Pending")
        return found

    async def _one_by_one(self, wanted: Sequence[str]) -> dict[str, Entry]:
        """Read as servers before 2.11 have it: first the keys, then each of them."""
        found: dict[str, Entry] = {}
        for pattern in wanted:
            info = await self._jetstream.ask(
                f"STREAM.INFO.{self.stream}", {"subjects_filter": pattern}
            )
            for subject in info["state"].get("subjects") or {}:
                found.update(await self._get(subject))
        return found

    def _entries(self, replies: Sequence[Reply]) -> dict[str, Entry]:
        now = asyncio.get_running_loop().time() + self._epoch
        found: dict[str, Entry] = {}
        for header, value in replies:
            fields = parse(header)
            key = fields.get("Nats-Subject", "").removeprefix(self._prefix)
            if is_gone(header, value):
                found.pop(key, None)
                continue
            written = _seconds(fields.get("Nats-Time-Stamp", ""), now)
            found[key] = Entry(value, _number(fields, "Nats-Sequence"), max(now - written, 0.0))
        return found

    # --- hearing --------------------------------------------------------------------------------

    def listen(self, on_entry: OnEntry) -> Subscription:
        """Hear of every put and delete as it is sent; in force after a barrier.

        What runs out is not announced, and what happens while the connection is down is missed:
        so take a snapshot too. End it with `Transport.unsubscribe`.
        """
        start = len(self._prefix)

        def on_message(subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
            key = subject[start:].decode("utf-8", "replace")
            on_entry(key, None if is_gone(header, payload) else payload)

        return self._jetstream.transport.subscribe(f"{self._prefix}>", on_message)


def is_gone(header: bytes, payload: bytes) -> bool:
    """Tell whether a message in a bucket says that its key is not there any more."""
    return not payload or b"\r\nKV-Operation:" in header or b"\r\nNats-Marker-Reason:" in header


def _seconds(moment: str, otherwise: float = 0.0) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError):
        return otherwise


def _number(fields: Mapping[str, str], name: str) -> int:
    """Read a number of a header block; 0 if it does not hold it."""
    said = fields.get(name, "")
    return int(said) if said.isascii() and said.isdigit() and len(said) <= _MOST_DIGITS else 0


def _ttl(seconds: float) -> str:
    return f"{max(1, round(seconds))}s"


def _block(*lines: tuple[str, str]) -> bytes:
    return VERSION_LINE + encode_lines(lines) + b"\r\n"
