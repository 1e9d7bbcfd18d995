"""`busmicro dlq`: what no handler could handle, and putting it back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click

from busmicro.cli.connection import connected
from busmicro.cli.failures import report
from busmicro.cli.kept import Kept, next_command
from busmicro.cli.moments import write_time
from busmicro.cli.options import add_global_options, given, verb
from busmicro.cli.output import print_json, print_table, print_text, to_text
from busmicro.cli.payloads import Shown, content_type, show
from busmicro.cli.words import clean, complain, did_you_mean, note
from busmicro.errors import CallError, Disconnected, exit_code
from busmicro.pubsub import DeadLetter, DeadLetters

_NUMBER = click.IntRange(1, 2**64 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is told of every dead letter; names and subjects as declared, without namespace."""

    number: int
    died: str
    stream: str
    consumer: str
    subject: str
    sequence: int
    attempts: int
    code: str
    reason: str
    event_id: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which dead letters are meant."""

    numbers: tuple[int, ...]
    """These; none for all."""
    stream: str
    """Of all, only those that this stream kept; empty for any."""
    consumer: str
    """Of all, only those that this consumer could not handle; empty for any."""


class _Group(click.Group):
    """A verb of verbs; it takes the global options too, without listing them in its help again."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for option in self.params:
            if isinstance(option, click.Option):
                option.hidden = True

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(args[0], known) or f"there are {', '.join(known)}"
            raise click.UsageError(f"there is no verb 'dlq {args[0]}': {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    "dlq",
    cls=_Group,
    epilog="Global options may stand here too: see `busmicro --help`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@add_global_options
def dlq() -> None:
    """Look at the dead letters, which no handler could handle; put them back, or drop them."""


def _filters(function: Callable[..., int]) -> Callable[..., int]:
    for option in (
        click.option("--consumer", default="", metavar="NAME", help="Only those of this consumer."),
        click.option("--stream", default="", metavar="NAME", help="Only those of this stream."),
    ):
        function = option(function)
    return function


def _choice(function: Callable[..., int]) -> Callable[..., int]:
    function = _filters(function)
    function = click.option("--all", "everything", is_flag=True, help="All that there are.")(
        function
    )
    return click.argument("numbers", nargs=-1, type=_NUMBER, metavar="[NUMBER…]")(function)


# --- list and show ------------------------------------------------------------------------------


@verb("list")
@_filters
@click.option(
    "--most", type=click.IntRange(1, 10**6), default=100, show_default=True, help="How many."
)
def _list(*, stream: str, consumer: str, most: int) -> int:
    """List the dead letters, the newest last.

    JSON: [{"number", "died", "stream", "consumer", "subject", "sequence", "attempts", "code",
    "reason", "event_id", "trace_id"}]; number is what the other verbs take, sequence that of the
    event in its stream.
    """
    return _run(_print_list(stream, consumer, most))


async def _print_list(stream: str, consumer: str, most: int) -> int:
    async with connected() as client:
        kept = Kept(client)
        await kept.require()
        within = kept.on_server(stream) if stream else ""
        letters = await DeadLetters(client.bus).list(stream=within, consumer=consumer, most=most)
        found = [_facts(kept, letter) for letter in letters]
    if given().json:
        print_json([asdict(facts) for facts in found])
    elif found:
        headings = ("number", "when", "stream", "consumer", "subject", "attempts", "cause", "trace")
        print_table(headings, [_row(facts) for facts in found])
    if not found:
        note("there are no dead letters")
    elif len(found) == most:
        note(f"there may be more: --most {10 * most}")
    return 0


def _row(one: Facts) -> tuple[str, ...]:
    return (
        str(one.number),
        one.died,
        one.stream,
        one.consumer,
        one.subject,
        str(one.attempts),
        ": ".join(filter(None, (one.code, one.reason))),
        one.trace_id,
    )


def _facts(kept: Kept, letter: DeadLetter) -> Facts:
    return Facts(
        number=letter.number,
        died=write_time(letter.died),
        stream=kept.own(letter.stream),
        consumer=letter.consumer,
        subject=kept.own_subject(letter.subject),
        sequence=letter.sequence,
        attempts=letter.attempts,
        code=letter.code,
        reason=letter.reason,
        event_id=letter.event_id,
        trace_id=letter.trace_id,
    )


@verb("show")
@click.argument("number", type=_NUMBER)
def _show(number: int) -> int:
    """Show all that is known of a dead letter, with the headers it came with.

    JSON: what `dlq list` has, and "details": [], "headers": {}, "content_type", "body", "payload";
    what cannot be decoded has a body of null and a payload in base64, else payload is null.
    """
    return _run(_print_one(number))


async def _print_one(number: int) -> int:
    async with connected() as client:
        kept = Kept(client)
        await kept.require()
        letter = await DeadLetters(client.bus).get(number)
        facts = asdict(_facts(kept, letter))
    shown = show(letter.payload, letter.headers)
    if given().json:
        print_json({**facts, **_contents(letter, shown)})
    else:
        _describe(facts, letter, shown)
    return 0


def _contents(letter: DeadLetter, shown: Shown) -> dict[str, object]:
    return {
        "details": letter.details,
        "headers": letter.headers,
        "content_type": content_type(letter.headers),
        "body": shown.body,
        "payload": shown.payload,
    }


def _describe(facts: dict[str, object], letter: DeadLetter, shown: Shown) -> None:
    for name, value in facts.items():
        print_text(f"{name.replace('_', ' '):<10}{value if value != '' else '-'}")
    for detail in letter.details:
        print_text(f"{'detail':<10}{to_text(detail)}")
    print_text()
    for name, text in letter.headers.items():
        print_text(f"{name}: {text}")
    print_text()
    print_text(shown.text)


# --- replay and drop ----------------------------------------------------------------------------


@verb("replay")
@_choice
def _replay(numbers: tuple[int, ...], *, everything: bool, stream: str, consumer: str) -> int:
    """Put dead letters back where they came from; they are dead letters no more.

    Every group that reads the stream gets such an event, also those that had handled it.

    JSON: [{"number", "stream", "sequence", "duplicate"}]; for what went wrong {"number", "error":
    {"code", "message"}}.
    """
    chosen = _chosen(numbers, everything=everything, stream=stream, consumer=consumer)
    return _run(_replay_all(chosen))


async def _replay_all(chosen: Chosen) -> int:
    async with connected() as client:
        letters, kept = DeadLetters(client.bus), Kept(client)

        async def replay(number: int) -> dict[str, object]:
            stored = await letters.replay(number)
            stream = kept.own(stored.stream)
            note(f"{number} is back in {stream} as {stored.sequence}")
            return {"stream": stream, "sequence": stored.sequence, "duplicate": stored.duplicate}

        return await _each(await _numbers(kept, letters, chosen), replay)


@verb("drop")
@_choice
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def _drop(
    numbers: tuple[int, ...], *, everything: bool, stream: str, consumer: str, yes: bool
) -> int:
    """Forget dead letters for good; on a terminal, asks before.

    JSON: [{"number", "dropped": true}]; for what went wrong {"number", "error": {"code",
    "message"}}.
    """
    chosen = _chosen(numbers, everything=everything, stream=stream, consumer=consumer)
    return _run(_drop_all(chosen, ask=not yes and sys.stdin.isatty()))


async def _drop_all(chosen: Chosen, *, ask: bool) -> int:
    async with connected() as client:
        letters, kept = DeadLetters(client.bus), Kept(client)
        numbers = await _numbers(kept, letters, chosen)
        if ask and numbers and not await asyncio.to_thread(_confirm, len(numbers)):
            note("nothing was dropped")
            return 1

        async def drop(number: int) -> dict[str, object]:
            letter = await letters.get(number)  # says so if there is none
            await letters.drop(number)
            note(f"{number} is gone: {kept.own_subject(letter.subject)}, {letter.event_id}")
            return {"dropped": True}

        return await _each(numbers, drop)


def _confirm(count: int) -> bool:
    what = "1 dead letter" if count == 1 else f"{count} dead letters"
    return click.confirm(f"drop {what} for good?", err=True)


# --- what both share ----------------------------------------------------------------------------


def _chosen(numbers: tuple[int, ...], *, everything: bool, stream: str, consumer: str) -> Chosen:
    if bool(numbers) == everything:
        raise click.UsageError("say which: numbers as `busmicro dlq list` has them, or --all")
    if numbers and (stream or consumer):
        raise click.UsageError("--stream and --consumer go with --all")
    return Chosen(numbers, stream, consumer)


async def _numbers(kept: Kept, letters: DeadLetters, chosen: Chosen) -> Sequence[int]:
    """List the numbers that are meant, as they are now: what dies again meanwhile is not."""
    await kept.require()
    if chosen.numbers:
        return list(dict.fromkeys(chosen.numbers))
    stream = kept.on_server(chosen.stream) if chosen.stream else ""
    found = await letters.list(stream=stream, consumer=chosen.consumer, most=sys.maxsize)
    if not found:
        note("there are no dead letters")
    return [letter.number for letter in found]


async def _each(numbers: Sequence[int], act: Callable[[int], Awaitable[dict[str, object]]]) -> int:
    """Do it to each, whatever becomes of the others: the exit code is that of the first failure."""
    done: list[dict[str, object]] = []
    failures: list[CallError] = []
    for number in numbers:
        try:
            done.append({"number": number, **await act(number)})
        except CallError as failure:
            failures.append(failure)
            complain(f"{number}: {failure}", hint="busmicro dlq list")
            error = {"code": failure.code.value, "message": clean(failure.message)}
            done.append({"number": number, "error": error})
            if isinstance(failure, Disconnected):
                break  # the rest would fail the same way, one by one
    if given().json:
        print_json(done)
    return exit_code(failures[0]) if failures else 0


def _run(work: Coroutine[None, None, int]) -> int:
    try:
        return asyncio.run(work)
    except CallError as failure:
        return report(failure, hint=next_command(failure, "busmicro dlq list"))


for _command in (_list, _show, _replay, _drop):
    dlq.add_command(_command)
