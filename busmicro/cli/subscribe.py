"""`busmicro subscribe`: print events as they come, and those that came before."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import click

from busmicro.call import Call
from busmicro.cli.complete import stream_names
from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.kept import Kept, next_command
from busmicro.cli.moments import read_start, write_time
from busmicro.cli.options import given, verb
from busmicro.cli.output import print_text, to_text
from busmicro.cli.payloads import content_type, show
from busmicro.cli.words import note
from busmicro.clock import SYSTEM_CLOCK
from busmicro.codecs import Coder, Coders
from busmicro.errors import CallError, FailedPrecondition
from busmicro.pubsub import Events, Start, Stream, SubscribeOptions, Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants to see."""

    subject: str
    """Where it comes in; wildcards allowed."""
    start: Start | None
    """Where to begin in a stream; None for what comes from now on."""
    stream: str | None
    """The stream to read; None for the one that keeps the subject, if `start` is given."""
    group: str | None
    """With whom to share; None for nobody."""
    count: int | None
    """How many; None for no limit."""
    wait: float | None
    """Seconds without an event after which it ends; None for ever."""
    headers: bool
    """Print headers too?"""


@verb("subscribe")
@click.argument("subject")
@click.option(
    "--from",
    "start",
    type=read_start,
    metavar="WHERE",
    help="Read the stream: first, new, a sequence number, 30m (ago), or a time.",
)
@click.option("--stream", metavar="NAME", shell_complete=stream_names, help="Read this stream.")
@click.option("--group", metavar="NAME", help="Share the events with others of this group.")
@click.option("--count", type=click.IntRange(1), help="End after so many.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End when so long nothing has come.",
)
@click.option("--headers", is_flag=True, help="Print the headers too.")
def subscribe(
    subject: str,
    *,
    start: Start | None,
    stream: str | None,
    group: str | None,
    count: int | None,
    wait: float | None,
    headers: bool,
) -> int:
    """Print events as they come, until Ctrl-C.

    In SUBJECT `*` stands for one word, `>` at the end for the rest. With --from or --stream events
    come from the stream that keeps them: old ones, and those that the server publishes itself when
    their time has come; nobody else misses any. With --group each event goes to one of the group
    only: a service of that group does not get what is printed here.

    JSON: a line for each event, {"subject", "headers": {}, "content_type", "body", "payload",
    "stream", "sequence", "attempt", "time"}. What cannot be decoded has a body of null and a
    payload in base64, else payload is null. Without a stream its three are null, and the time is
    that of arrival.
    """
    wish = Wish(
        subject=subject,
        start=start,
        stream=stream,
        group=group,
        count=count,
        wait=wait,
        headers=headers,
    )
    try:
        asyncio.run(_subscribe(wish))
    except CallError as failure:
        return report(failure, hint=next_command(failure))
    return 0


async def _subscribe(wish: Wish) -> None:
    _topic(wish, None)  # refuses what is wrong before anyone is asked
    async with connected() as client:
        kept = Kept(client)
        stream = await _stream(kept, wish)
        topic = _topic(wish, stream)
        async with client.subscribe(topic, group=wish.group, start=wish.start) as events:
            place = f"stream {stream.name}" if stream else "what comes from now on"
            note(f"listening to {wish.subject}: {place}; Ctrl-C ends it")
            await _print_all(events, kept, wish)


class _Anything(Coders):
    """Takes the bytes as they are, whatever they claim to be: what they are is for display only."""

    def find(self, content_type: str) -> Coder | None:  # noqa: ARG002 - the promise of `Coders`
        """Return the coder of bytes."""
        return self.default


def _topic(wish: Wish, stream: Stream | None) -> Topic[bytes]:
    """Make the topic to listen to.

    Raises:
        SetupError: The subject or the group cannot be meant.
    """
    SubscribeOptions(group=wish.group or "")
    topic = Topic(wish.subject, bytes, stream=stream)
    topic.coders = _Anything(bytes)
    return topic


async def _stream(kept: Kept, wish: Wish) -> Stream | None:
    """Choose the stream to read; None if none is wanted.

    Raises:
        NoJetStream: There are no streams.
        NotFound: There is no such stream.
        FailedPrecondition: None keeps the subject, or several do, or to read it is to take events
            away.
    """
    if wish.start is None and wish.stream is None:
        return None
    await kept.require()
    name = wish.stream or await _keeper(kept, wish)
    config = (await kept.stream(name))["config"]
    if config["retention"] == "workqueue" and wish.group is None:
        raise FailedPrecondition(
            f"stream {name} is a work queue: an event that is read is gone; --group NAME, if you "
            "want to take events from that group, or leave out --from to see what comes"
        )
    return Stream(name, managed=False)


async def _keeper(kept: Kept, wish: Wish) -> str:
    """Return the stream that keeps the subject.

    Raises:
        FailedPrecondition: None does, or several do.
    """
    names = await kept.keepers(wish.subject)
    if not names:
        raise FailedPrecondition(
            f"no stream keeps {wish.subject}: leave out --from to see what comes from now on"
        )
    if len(names) > 1:
        raise FailedPrecondition(
            f"{len(names)} streams keep some of {wish.subject}: say --stream "
            + " or --stream ".join(names)
        )
    return names[0]


async def _print_all(events: Events[bytes], kept: Kept, wish: Wish) -> None:
    printed = told = 0
    try:
        while wish.count is None or printed < wish.count:
            async with asyncio.timeout(wish.wait):
                await anext(events)
            _print(events.call, kept, headers=wish.headers)
            printed += 1
            if events.dropped > 2 * told:
                told = _tell_dropped(events.dropped)
    except TimeoutError:
        return
    finally:
        if events.dropped > told:
            _tell_dropped(events.dropped)


def _tell_dropped(count: int) -> int:
    note(f"{count} events were dropped: they came more quickly than they are printed")
    return count


def _print(call: Call, kept: Kept, *, headers: bool) -> None:
    """Print one event; what it holds can be anything, and never ends the listening."""
    delivery = call.delivery
    shown = show(call.payload, call.headers)
    subject = kept.own_subject(call.subject)
    time = write_time(SYSTEM_CLOCK.wall() if delivery is None else delivery.stored)
    stream = None if delivery is None else kept.own(delivery.stream)
    if given().json:
        line = {
            "subject": subject,
            "headers": dict(call.headers),
            "content_type": content_type(call.headers),
            "body": shown.body,
            "payload": shown.payload,
            "stream": stream,
            "sequence": None if delivery is None else delivery.sequence,
            "attempt": None if delivery is None else delivery.attempt,
            "time": time,
        }
        click.echo(to_text(line))
        return
    place = "" if delivery is None else f"  {stream} {delivery.sequence}"
    print_text(f"{time}  {subject}{place}  {shown.text}")
    for name, value in call.headers.items() if headers else ():
        print_text(f"    {name}: {value}")
