"""`busmicro stream`: open a stream, messages in and replies out."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

import click

from busmicro.cli.body import parse, parse_headers
from busmicro.cli.complete import service_names, streaming_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.find import endpoint_of, nobody
from busmicro.cli.options import given, verb
from busmicro.cli.output import to_text
from busmicro.cli.pipes import Lines, Out
from busmicro.cli.schemas import Schema
from busmicro.cli.words import clean, complain, note
from busmicro.client import Client
from busmicro.codecs import JSON
from busmicro.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    Unavailable,
    Unimplemented,
)
from busmicro.headers import CONTENT_TYPE
from busmicro.registry import EndpointRecord
from busmicro.rpc import CallStream

_SECONDS = click.FloatRange(min=0, min_open=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be streamed, and how."""

    service: str
    """The service."""
    endpoint: str
    """Its endpoint."""
    body: tuple[str, ...]
    """The request as it stands on the command line; empty for none."""
    headers: dict[str, str]
    """Sent on opening."""
    node: str
    """The id of the only node to ask; empty for any."""
    limit: int | None
    """Leave after so many replies; None for no limit."""
    idle_timeout: float | None
    """Seconds without a message after which it is ended; None for ever."""
    raw: bool
    """Leave messages as they are?"""


@verb("stream")
@click.argument("service", shell_complete=service_names)
@click.argument("endpoint", shell_complete=streaming_names)
@click.argument("body", nargs=-1, metavar="[JSON | - | @FILE | K=V K:=JSON]")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", help="Send a header.")
@click.option("--node", default="", metavar="ID", help="Ask this node.")
@click.option("--limit", type=click.IntRange(1), help="Leave after so many replies.")
@click.option(
    "--idle-timeout",
    type=_SECONDS,
    metavar="SECONDS",
    help="End it when so long no message has come or gone.",
)
@click.option(
    "--raw", is_flag=True, help="Print replies as they came; send lines as bytes, ends included."
)
def stream(
    service: str,
    endpoint: str,
    body: tuple[str, ...],
    *,
    headers: tuple[str, ...],
    node: str,
    limit: int | None,
    idle_timeout: float | None,
    raw: bool,
) -> int:
    """Open a stream: messages in, replies out, each as it comes.

    An endpoint that takes one request takes it as `busmicro call` does. One that takes many reads
    them from stdin, each line a message: JSON, or text where the endpoint wants text. The end of
    stdin (Ctrl-D) says that no more come; Ctrl-C leaves, and the service ends what it does. Without
    --timeout a stream may take for ever.

    \b
    busmicro stream clock tick seconds:=1 --limit 3
    busmicro stream shop sum < numbers.jsonl
    busmicro stream chat talk -H 'Name: Ada'

    JSON: a line for each reply, as it is; bytes as {"payload": base64}.
    """  # noqa: D301 - click wants the backspace: it keeps lines apart
    wish = Wish(
        service=service,
        endpoint=endpoint,
        body=body,
        headers=parse_headers(headers),
        node=node,
        limit=limit,
        idle_timeout=idle_timeout,
        raw=raw,
    )
    return asyncio.run(_stream(wish))


async def _stream(wish: Wish) -> int:
    if wish.body != ("-",):
        parse(wish.body, raw=wish.raw)  # refuses what is wrong before anyone is asked
    async with connected() as client:
        try:
            known = await _known(client, wish)
            if known is not None and not known.streams:
                text = f"{wish.endpoint} is a call, not a stream"
                hint = f"busmicro call {wish.service} {wish.endpoint}"
                return report(Unimplemented(text), hint=hint)
            await _Exchange(client, wish, known).run()
        except CallError as failure:
            return await _failed(client, wish, failure)
    return 0


async def _known(client: Client, wish: Wish) -> EndpointRecord | None:
    """Return what is known of the endpoint; None if nobody can tell, as without permissions."""
    record = await client.bus.discovery.service(wish.service)
    return endpoint_of(record, wish.endpoint) if record is not None else None


async def _failed(client: Client, wish: Wish, failure: CallError) -> int:
    if isinstance(failure, Unavailable) and failure.not_run and client.bus.transport.connected:
        return await nobody(client, wish.service, wish.node, failure)
    hint = ""
    if isinstance(failure, DeadlineExceeded) and wish.idle_timeout and given().timeout is None:
        hint = "--idle-timeout with more seconds"
    return report(failure, hint=hint, service=wish.service)


class _Exchange:
    """One stream, between stdin and stdout."""

    def __init__(self, client: Client, wish: Wish, known: EndpointRecord | None) -> None:
        self._client = client.with_options(node=wish.node or None)
        self._wish = wish
        self._described = known is not None and known.request is not None
        self._schema = Schema(known.request if known else None)
        self._takes_many = known.takes_many if known else not wish.body
        self._as_bytes = wish.raw and not self._described
        self._out = Out()
        self._unsent: CallError | None = None

    async def run(self) -> None:
        """Open it, send and print until it ends.

        Raises:
            CallError: It did not open, did not end well, or what was to be sent is no message.
            UsageError: The endpoint takes its messages from elsewhere.
        """
        wish = self._wish
        many = self._takes_many
        if many and wish.body not in {(), ("-",)}:
            example = f"echo 'JSON' | busmicro stream {wish.service} {wish.endpoint}"
            raise click.UsageError(
                f"{wish.endpoint} takes its messages from stdin, each a line: {example}"
            )
        sends: type[object] | None = (bytes if self._as_bytes else object) if many else None
        returns: type[object] | None = bytes if wish.raw else None
        session = self._client.stream(
            wish.service,
            wish.endpoint,
            None if many else parse(wish.body, raw=wish.raw),
            sends=sends,
            returns=returns,
            timeout=given().timeout,
            idle_timeout=wish.idle_timeout,
            headers=wish.headers,
        )
        enough = False
        try:
            async with session as stream:
                enough = await (self._send_and_print(stream) if many else self._print_all(stream))
        except CallError:
            if not enough:  # else nobody asks any more how it would have ended
                raise

    async def _send_and_print(self, stream: CallStream[object, object]) -> bool:
        sending = self._client.bus.tasks.spawn(self._send_all(stream), name="stdin")
        try:
            return await self._print_all(stream)
        except CallError:
            if self._unsent is not None:
                raise self._unsent from None
            raise
        finally:
            sending.cancel()

    # --- in -------------------------------------------------------------------------------------

    async def _send_all(self, stream: CallStream[object, object]) -> None:
        try:
            async for message in self._messages():
                await stream.send(message)
            await stream.close_send()
        except CallError as wrong:
            if not stream.is_over:  # else whoever prints hears how it ended
                self._unsent = wrong
                stream.cancel(Cancelled("the caller's next message cannot be sent"))

    async def _messages(self) -> AsyncIterator[object]:
        lines = Lines(self._client.bus.settings.max_message_bytes, cut=self._as_bytes)
        if lines.typed:
            note("each line is a message; Ctrl-D says that no more come, Ctrl-C leaves")
        async for line in lines:
            try:
                message = line if self._as_bytes else self._read(line, lines.number)
            except InvalidArgument as wrong:
                if not lines.typed:
                    raise
                complain("not sent", wrong.message)
            else:
                if message is not _NOTHING:
                    yield message

    def _read(self, line: bytes, number: int) -> object:
        """Read a line: JSON, or text where the endpoint wants text.

        Raises:
            InvalidArgument: It is neither.
        """
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as wrong:
            raise InvalidArgument(f"line {number} is not UTF-8 text") from wrong
        if not text.strip() and not self._schema.takes_text:
            return _NOTHING
        try:
            value: object = json.loads(text)
        except (ValueError, RecursionError) as wrong:
            if self._schema.takes_text:
                return text
            more = "" if self._described else "; --raw sends lines as they are"
            raise InvalidArgument(f"line {number} is not JSON: {_fault(wrong)}{more}") from wrong
        return text if self._schema.takes_only_text and not isinstance(value, str) else value

    # --- out ------------------------------------------------------------------------------------

    async def _print_all(self, stream: CallStream[object, object]) -> bool:
        """Print what comes, to the end or the limit; was that reached?"""
        printed = 0
        async for reply in stream:
            content_type = stream.reply_headers.get(CONTENT_TYPE, "") or JSON
            await self._out.write(self._written(reply, content_type))
            printed += 1
            if printed == self._wish.limit:
                return True
        return False

    def _written(self, reply: object, content_type: str) -> bytes:
        """Write a reply as it is printed; bytes of the service's own are left as they are."""
        if isinstance(reply, bytes) and not given().json:
            ends = self._out.is_terminal or content_type == JSON
            return reply + b"\n" if ends else reply
        if isinstance(reply, bytes):
            reply = {"payload": base64.b64encode(reply).decode()}
        if self._out.is_terminal and not given().json:
            text = clean(json.dumps(reply, ensure_ascii=False, default=str, indent=2))
        else:
            text = to_text(reply)
        return f"{text}\n".encode("utf-8", "replace")


def _fault(wrong: Exception) -> str:
    at = f" at column {wrong.colno}" if isinstance(wrong, json.JSONDecodeError) else ""
    return f"{getattr(wrong, 'msg', wrong)}{at}"


_NOTHING = object()
"""What a line says that is left empty."""
