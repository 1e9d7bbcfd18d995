"""What a node does alike for a call and for a stream: read what is asked, tell how it ended."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache
from typing import TypeAlias

from busmicro.call import Call, Spec
from busmicro.codecs import JSON, Coder
from busmicro.errors import CallError, Cancelled, CodecError, Internal, InvalidArgument
from busmicro.headers import (
    CONTENT_TYPE,
    FIND_CONTENT_TYPE,
    FIND_STREAM,
    FIND_TIMEOUT,
    VERSION_LINE,
    encode_line,
    encode_lines,
    find,
)

log = logging.getLogger("busmicro.rpc")

_LONGEST_TIMEOUT = 86_400.0
_MOST_DIGITS = 10
_LONGEST_KNOWN_BYTES = 256
_TRACE = b"\r\ntraceparent:"


Asked: TypeAlias = tuple[str, float | None, str | None]
"""Content type, seconds that the caller waits, and the window of a stream that is to be opened."""

_NOTHING: Asked = ("", None, None)


def read_asked(header: bytes) -> Asked:
    """Read a request's header block, as far as it concerns us.

    Callers say the same again and again, but for the trace: a block without its trace is read once
    and known from then on, which takes 0.4 µs of a request in place of 1.3.

    Returns:
        Content type, empty if it does not say; timeout, None if it does not say; window of the
        stream, None for a call.

    Raises:
        InvalidArgument: The timeout is no number.
    """
    if not header:
        return _NOTHING
    if (at := header.find(_TRACE)) >= 0 and (end := header.find(b"\r\n", at + 2)) >= 0:
        header = header[:at] + header[end:]
    return _read(header) if len(header) <= _LONGEST_KNOWN_BYTES else _read_block(header)


def _read_block(header: bytes) -> Asked:
    lowered = header.lower()
    timeout = None
    if (at := lowered.rfind(FIND_TIMEOUT)) >= 0:
        timeout = _seconds(_line(header, at + len(FIND_TIMEOUT)))
    content_type = ""
    if (at := lowered.rfind(FIND_CONTENT_TYPE)) >= 0:
        content_type = _text(_line(header, at + len(FIND_CONTENT_TYPE)))
    if FIND_STREAM not in lowered:
        return content_type, timeout, None
    return content_type, timeout, _text(find(header, lowered, FIND_STREAM))


_read = lru_cache(maxsize=4096)(_read_block)  # a nested call has whatever time is left, in ms


def _line(block: bytes, at: int) -> bytes:
    end = block.find(b"\r\n", at)
    return block[at : end if end >= 0 else len(block)].strip()


def _seconds(left: bytes) -> float | None:
    if not left:
        return None
    if not left.isdigit() or len(left) > _MOST_DIGITS:
        text = left.decode("utf-8", "replace")
        raise InvalidArgument(f"Bus-Timeout: {text!r} is no number", not_run=True)
    return min(int(left) / 1000, _LONGEST_TIMEOUT)


def _text(said: bytes) -> str:
    return said.decode("utf-8", "replace")


def encode_reply(spec: Spec, encoder: Coder, message: object) -> bytes:
    """Encode what a handler returned or yielded.

    Raises:
        Internal: It is not what the handler has declared; the log says what it is.
    """
    try:
        return encoder.encode(message)
    except CodecError as wrong:
        raise not_declared(spec, wrong) from wrong


def not_declared(spec: Spec, wrong: CodecError) -> Internal:
    """Log that a handler returned or yielded what it had not declared; make what is told."""
    log.error("%s.%s returned: %s", spec.service, spec.endpoint, wrong)
    return Internal("the service returned what it had not declared")


def reply_block(content_type: str, call: Call | None = None) -> bytes:
    """Make the header block of a reply; empty if there is nothing to say.

    Args:
        content_type: What it is; JSON goes without saying.
        call: What it replies to, if headers have been set there.

    Raises:
        Internal: One of them cannot be sent; the log says which.
    """
    lines = b"" if content_type == JSON else encode_line(CONTENT_TYPE, content_type)
    if call is not None and call.has_reply_headers:
        lines += reply_lines(call)
    return VERSION_LINE + lines + b"\r\n" if lines else b""


def reply_lines(call: Call) -> bytes:
    """Write the headers that the handler has set.

    Raises:
        Internal: One of them cannot be sent; the log says which.
    """
    try:
        return encode_lines(call.reply_headers.items_by_name.items())
    except InvalidArgument as wrong:
        log.error("reply headers of %r: %s", call, wrong.message)  # noqa: TRY400
        raise Internal("the service set a reply header that cannot be sent") from wrong


def explain(failure: BaseException, spec: Spec, *, began: bool) -> CallError:
    """Turn what ended a request into what its caller is told."""
    if isinstance(failure, CallError):
        # what is true of a call that the handler made need not be true of this one
        failure.not_run = failure.not_run and not began
        return failure
    if isinstance(failure, CodecError):
        return InvalidArgument(str(failure), details=failure.details)
    if isinstance(failure, asyncio.CancelledError):
        return Cancelled("the handler was cancelled")
    log.error("%s.%s failed outside its handler", spec.service, spec.endpoint, exc_info=failure)
    return Internal("the service failed; its log says why")
