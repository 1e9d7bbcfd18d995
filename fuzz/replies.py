"""Where a node may be made to publish, as docs/protocol.md has it; written a second time."""

from __future__ import annotations

import re
from typing import Final

KEPT: Final = ("orders.*", "audit.>", "shop.kept.d1")
"""What streams of the account keep."""
_OURS: Final = {b"rpc", b"node", b"cancel", b"dlq", b"schedules"}
_FRAME: Final = re.compile(rb"[dpoes][1-9][0-9]*|[acqrxn]")


def may_answer(reply: bytes, inbox_prefix: bytes = b"_INBOX") -> bool:
    """Tell whether a node may publish an answer there."""
    if not reply:
        return False
    if reply.startswith((b"_INBOX.", inbox_prefix + b".")):
        return True
    if reply.startswith(b"$") or _OURS & set(reply.split(b".")):
        return False
    return not any(_covers(pattern, reply) for pattern in KEPT)


def may_publish(subject: bytes, asked: set[bytes]) -> bool:
    """Tell whether a node may publish there, for one of those who have asked."""
    if subject in asked:
        return may_answer(subject)
    address, _, frame = subject.rpartition(b".")
    return address in asked and bool(_FRAME.fullmatch(frame)) and may_answer(subject)


def _covers(pattern: str, subject: bytes) -> bool:
    words = [re.escape(word) for word in pattern.split(".")]
    text = r"\.".join({r"\*": r"[^.]*", ">": r".+"}.get(word, word) for word in words)
    return re.fullmatch(text.encode(), subject, re.DOTALL) is not None
