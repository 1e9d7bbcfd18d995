"""How a verb that failed ends: what, why, the next command to try, and an exit code."""

from __future__ import annotations

import json

from busmicro.cli.words import complain
from busmicro.embedded import ServerFailed
from busmicro.errors import (
    BusmicroError,
    CallError,
    Code,
    Disconnected,
    Unauthenticated,
    exit_code,
)

FAILED, USAGE, NO_SERVER, TIME_IS_UP = 1, 2, 3, 124

_HINTS = {
    Code.INVALID_ARGUMENT: "busmicro describe {service}",
    Code.UNIMPLEMENTED: "busmicro describe {service}",
    Code.DEADLINE_EXCEEDED: "--timeout with more seconds, or: busmicro health {service}",
    Code.UNAVAILABLE: "busmicro services",
    Code.INTERNAL: "the log of {service}: it has the whole story",
    Code.DATA_LOSS: "--raw, to see what came",
    Code.RESOURCE_EXHAUSTED: "again later, or: busmicro stats {service}",
}


def report(failure: Exception, *, hint: str = "", service: str = "") -> int:
    """Say what went wrong and return the exit code.

    Args:
        failure: Anything that busmicro raises on purpose.
        hint: The next command to try, where more is known than the failure tells.
        service: Who was asked, if the failure does not say who it comes from.

    Raises:
        Exception: The failure itself, if it is nobody's purpose: a fault of busmicro.
    """
    if isinstance(failure, Disconnected):
        _report_disconnected(failure)
    elif isinstance(failure, CallError):
        _report_call(failure, hint, failure.origin or service)
    elif isinstance(failure, ServerFailed):
        what, _, why = str(failure).partition("; its log ends:\n")
        complain(what, *why.splitlines()[-1:], hint=hint or "another --port")
    elif isinstance(failure, BusmicroError):
        what, _, why = str(failure).partition(": ")
        complain(what, *filter(None, [why]), hint=hint)
    else:
        raise failure
    return exit_code(failure)


def _report_disconnected(failure: Disconnected) -> None:
    what, _, why = failure.message.partition(": ")
    complain(what, why or "the connection is down", hint="busmicro server")


def _report_call(failure: CallError, hint: str, service: str) -> None:
    at = f" [{failure.origin}]" if failure.origin else ""
    what, _, why = failure.message.partition(": ")
    reasons = [_detail(detail) for detail in failure.details] or [*filter(None, [why])]
    if not hint and not isinstance(failure, Unauthenticated):
        hint = _HINTS.get(failure.code, "").format(service=service or "SERVICE")
    complain(f"{failure.code.value}: {what}{at}", *reasons, hint=hint)


def _detail(detail: object) -> str:
    """Write a detail of an error in one line."""
    if isinstance(detail, dict) and isinstance(detail.get("problem"), str):
        where = detail.get("field")
        return f"{where}: {detail['problem']}" if where else str(detail["problem"])
    return (
        detail if isinstance(detail, str) else json.dumps(detail, ensure_ascii=False, default=repr)
    )
