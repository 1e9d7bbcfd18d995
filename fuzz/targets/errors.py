"""Error replies of anybody: each becomes an error to raise, and what we write of it is read alike.

Input: a message; its header block and its payload are those of the reply.
"""

from __future__ import annotations

import json

from busmicro.errors import CallError, InvalidArgument
from busmicro.headers import (
    FIND_CONTENT_TYPE,
    FIND_STREAM,
    FIND_TIMEOUT,
    VERSION_LINE,
    Headers,
    find,
    parse,
)
from busmicro.rpc.answering import read_asked
from busmicro.rpc.frames import read_standing, read_window, write_standing
from busmicro.rpc.wire import ERROR_MARK, decode_error, encode_error
from fuzz import messages
from fuzz.wrong import WrongError, listen_for_complaints, require

_MOST_BODY_BYTES = 64 * 1024
complaints = listen_for_complaints()


def one(data: bytes) -> None:
    """Read an input as an error, as a request's header block and as what frames carry."""
    for message in messages.read(data)[:1]:
        _as_error(message.header, message.payload)
        _as_request(message.header)
        _as_frame(message.payload)
    complaints.require_none()


def _as_error(header: bytes, payload: bytes) -> None:
    error = decode_error(header, payload, "fuzz")
    require(isinstance(error, CallError), "no error to raise", error)
    require(str(error), "an error that says nothing")
    block, body = encode_error(error, "fuzz")
    require(ERROR_MARK in block and block.isascii(), "no block of an error", block)
    require(block.startswith(VERSION_LINE) and block.endswith(b"\r\n\r\n"), "no block", block)
    require(block.count(b"\r\n") == len(parse(block)) + 2, "another header slipped in", block)
    json.loads(body, parse_constant=_refuse)
    require(len(body) <= _MOST_BODY_BYTES or not json.loads(body)["details"], "too long a body")
    again = decode_error(block, body, "fuzz")
    require(type(again) is type(error), "another class", again, error)
    require(again.not_run == error.not_run, "not run", again, error)
    require(again.retry_after == error.retry_after, "retry after", again, error)
    require(again.origin == error.origin, "origin", again.origin, error.origin)


def _refuse(name: str) -> None:
    raise WrongError(f"not JSON: {name}")


def _as_request(header: bytes) -> None:
    lowered = header.lower()
    for name in (FIND_TIMEOUT, FIND_CONTENT_TYPE, FIND_STREAM):
        value = find(header, lowered, name)
        require(value == value.strip() and b"\r\n" not in value, "no value", value)
    headers = Headers(header)
    for name in headers:
        require(name.swapcase() in headers or not name.isascii(), "in any case", name)
    try:
        _type, timeout, window = read_asked(header)
        require(timeout is None or 0 <= timeout <= 86_400, "timeout", timeout)
        if window is not None:
            read = read_window(window)
            require(read_window(read.header()) == read, "window", read)
    except InvalidArgument as wrong:
        require(wrong.not_run, "a request that may have run", wrong)


def _as_frame(payload: bytes) -> None:
    standing = read_standing(payload)
    if standing is not None:
        require(read_standing(write_standing(standing)) == standing, "standing", standing)
