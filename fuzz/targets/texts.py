"""What people and programs write: refused with the documented error, or taken and read alike.

Input: a digit that says what it is taken for, then the text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

import click

from busmicro import InvalidArgument, Settings, SetupError, Stream, Topic
from busmicro.cli.body import parse, parse_headers
from busmicro.cli.moments import read_start, read_time, write_time
from busmicro.cli.payloads import show
from busmicro.codecs import JSON, MSGPACK
from busmicro.headers import check, decode_text, encode_text
from busmicro.pubsub.envelope import Envelope, clean_id, durable_lines
from busmicro.pubsub.schedule import Cron
from busmicro.transport.subjects import (
    bucket_name,
    check_endpoint,
    check_namespace,
    check_node,
    check_service,
    check_version,
    matches,
    may_be_named,
)
from fuzz.wrong import require

_EVENTS: Final = Topic("events.tick", int, stream=Stream("EVENTS", subjects=["events.>"]))


def _names(text: str) -> None:
    for checked in (check_service, check_node, check_endpoint, check_version, check_namespace):
        try:
            require(checked(text) == text and text.isascii(), "taken", checked, text)
        except SetupError as wrong:
            require(repr(text) in str(wrong), "an error without the name", wrong)
    bucket_name(text.encode("utf-8", "replace").decode(), "registry")


def _topic(text: str) -> None:
    try:
        topic = Topic(text, int)
    except SetupError:
        return
    text.encode()  # or it could not be published to
    if topic.is_concrete:
        require(topic.matches(text) and may_be_named(text), "does not match itself", text)
    elif topic.names:
        filled = topic.format(**dict.fromkeys(topic.names, "x"))
        require(topic.matches(filled.subject), "does not match what was filled in", text)
        require(set(topic.values(filled.subject)) == set(topic.names), "names", text)


def _event(text: str) -> None:
    try:
        id = clean_id(text)
    except InvalidArgument:
        return
    block = Envelope(durable_lines(JSON, text), "shop", "events.tick").block(id)
    require(block.isascii() and block.count(b"\r\n") == 9, "no block", block)


def _header(text: str) -> None:
    encoded = encode_text(text)
    check("X-Text", encoded)
    require(decode_text(encoded).startswith("") and len(encoded) <= 3 * 4 * 512, "encoded", encoded)
    name, _, value = text.partition(":")
    try:
        check(name, value)
    except InvalidArgument:
        return
    require(f"{name}{value}".isascii() and "\n" not in text and "\r" not in text, "taken", text)


def _schedule(text: str) -> None:
    try:
        cron = Cron.of("tick", text, _EVENTS, 1)
    except SetupError:
        return
    check("Nats-Schedule", cron.schedule)


def _settings(text: str) -> None:
    try:
        settings = Settings.load(nats_url=text, connect_timeout=text[:5], max_running=text[:3])
    except SetupError:
        return
    require(settings.urls or not text.strip(", "), "no URL", text)


def _command(text: str) -> None:
    for reading in (read_start, read_time):
        try:
            found = reading(text)
        except click.BadParameter:
            continue
        if reading is read_time:
            require(
                abs((read_time(write_time(found)) - found).total_seconds()) < 0.001, "time", text
            )
    words = text.split("\x00")
    if not any(word == "-" or word.startswith("@") for word in words):
        for raw in (False, True):
            try:
                parse(words, raw=raw)
            except click.UsageError:
                continue
    try:
        parse_headers(words)
    except click.UsageError:
        return


def _payload(text: str) -> None:
    payload = text.encode("utf-8", "surrogateescape")
    for content_type in (JSON, MSGPACK, "text/plain", "x"):
        shown = show(payload, {"Content-Type": content_type})
        require(shown.text.isprintable(), "not printable", shown.text)
        if shown.decoded:
            require(json.loads(shown.text) == shown.body, "shown otherwise", shown)


def _patterns(text: str) -> None:
    pattern, _, subject = text.partition(" ")
    held = matches(pattern, subject)
    require(held or pattern != subject or ">" in pattern.split(".")[:-1], "not itself", text)


_READERS: Final[tuple[Callable[[str], None], ...]] = (
    _names,
    _topic,
    _event,
    _header,
    _schedule,
    _settings,
    _command,
    _payload,
    _patterns,
)


def one(data: bytes) -> None:
    """Take a text for what its first digit says."""
    if data[:1].isdigit() and int(data[:1]) < len(_READERS):
        _READERS[int(data[:1])](data[1:].decode("utf-8", "surrogateescape"))
