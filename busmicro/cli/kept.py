"""What JetStream keeps: its streams and consumers, and which stream keeps a subject."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import click

from busmicro.cli.options import given
from busmicro.cli.words import did_you_mean
from busmicro.client import Client
from busmicro.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    NoJetStream,
    NotFound,
    NotSupported,
    PayloadTooLarge,
    PermissionDenied,
    PublishUnknown,
    StreamFull,
    Unavailable,
)
from busmicro.transport import JetStream, err_code

_TIMEOUT = 5.0
_NOT_FOUND = 10059
_NAME = re.compile(r"[^\s.*>/\\\x00-\x1f\x7f]{1,255}")

Answer = Mapping[str, Any]


class Kept:
    """The streams of a client's namespace, or of the whole account where there is none.

    Args:
        client: Whose connection is used.
    """

    def __init__(self, client: Client) -> None:
        self._prefix = client.bus.subjects.stream("")
        self._subject_prefix = client.bus.subjects.prefix
        self._jetstream = JetStream(client.bus.transport, client.bus.replies)

    async def require(self) -> None:
        """Return if there is JetStream.

        Raises:
            NoJetStream: There is none for this account.
            CallError: Nobody can tell.
        """
        if not await self._jetstream.available():
            raise NoJetStream

    async def streams(self) -> list[Answer]:
        """Return what the server says of each stream, by name."""
        await self.require()
        found = await self._pages("STREAM.LIST", "streams", {})
        mine = [one for one in found if one["config"]["name"].startswith(self._prefix)]
        return sorted(mine, key=lambda one: str(one["config"]["name"]))

    async def names(self, subject: str = "") -> list[str]:
        """List the streams by the names their declarations give them.

        Args:
            subject: Only those that keep it, or part of it if it has wildcards.
        """
        asked = {"subject": self._subject_prefix + subject} if subject else {}
        names = await self._pages("STREAM.NAMES", "streams", asked)
        return sorted(self.own(name) for name in names if name.startswith(self._prefix))

    async def keepers(self, subject: str) -> list[str]:
        """List the streams that keep a subject, or part of it; none where there is no JetStream.

        Raises:
            PermissionDenied: This client may not ask.
            CallError: Nobody can tell.
        """
        try:
            return await self.names(subject)
        except Unavailable:
            if await self._jetstream.available():
                raise
            return []

    async def stream(self, name: str) -> Answer:
        """Return what the server says of one stream.

        Raises:
            InvalidArgument: No stream can have this name.
            NotFound: There is none; the text says which names come close.
        """
        await self.require()
        try:
            return await self._ask(f"STREAM.INFO.{self.on_server(name)}")
        except NotFound as missing:
            if err_code(missing) != _NOT_FOUND:
                raise
            raise await self.missing(name) from missing

    async def consumers(self, stream: str) -> list[Answer]:
        """Return what the server says of each consumer of a stream, by name."""
        found = await self._pages(f"CONSUMER.LIST.{self.on_server(stream)}", "consumers", {})
        return sorted(found, key=lambda one: str(one["name"]))

    async def missing(self, name: str) -> NotFound:
        """Make the error that says that a stream is not there, and which are."""
        names = [other for other in await self.names() if not is_bucket(other)]
        listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        hint = did_you_mean(name, names) or (f"there are {listed}" if names else "there is none")
        return NotFound(f"there is no stream {name!r}: {hint}", not_run=True)

    def own(self, stream: str) -> str:
        """Return the name that a stream has in its declaration, from that on the server."""
        return stream.removeprefix(self._prefix)

    def own_subject(self, subject: str) -> str:
        """Return a subject as topics have it, from that on the server."""
        return subject.removeprefix(self._subject_prefix)

    def on_server(self, name: str) -> str:
        """Return the name that a stream has on the server.

        Raises:
            InvalidArgument: No stream can have this name.
        """
        if not _NAME.fullmatch(name):  # a blank would break the line of the protocol
            raise InvalidArgument(f"{name!r} cannot be a stream: its name has no dots or blanks")
        return self._prefix + name

    async def _pages(self, subject: str, key: str, asked: Mapping[str, object]) -> list[Any]:
        found: list[Any] = []
        while True:
            page = await self._ask(subject, {**asked, "offset": len(found)})
            more = page.get(key) or []
            found += more
            if not more or len(found) >= int(page.get("total", 0)):
                return found

    async def _ask(self, subject: str, body: object = None) -> Answer:
        timeout = given().timeout or _TIMEOUT
        return await self._jetstream.api(subject, body, timeout=timeout)


def is_bucket(stream: str) -> bool:
    """Tell whether a stream is really a bucket of keys or objects, which is not for events."""
    return stream.startswith(("KV_", "OBJ_"))


def next_command(failure: CallError, usual: str = "busmicro streams") -> str:
    """Return what to try after an event could not be published, read or put back.

    Args:
        failure: What went wrong.
        usual: What to try if it says nothing of that.
    """
    if isinstance(failure, PublishUnknown):
        return f"the same again with --id {failure.id}"
    if isinstance(failure, StreamFull):
        return f"busmicro streams {failure.stream}"
    if isinstance(failure, InvalidArgument):
        return f"{click.get_current_context().command_path} --help"
    known = (hint for kind, hint in _NEXT.items() if isinstance(failure, kind))
    return next(known, usual)


_NEXT: Mapping[type[CallError], str] = {
    NoJetStream: "busmicro server",
    NotSupported: "a newer nats-server",
    PayloadTooLarge: "a smaller event",
    DeadlineExceeded: "--timeout with more seconds",
    PermissionDenied: "another user: --user, --creds or --context",
}
