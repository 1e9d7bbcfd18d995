"""Look at messages before the handler does, and refuse those that are wrong."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import cast

from busmicro.call import Call, Handler, Kind, Side
from busmicro.errors import CallError, InvalidArgument, SetupError


class Validate:
    """Runs a check on each message before it reaches the handler, or before it is sent.

    A wrong message becomes `invalid_argument`; nothing ran. Of a stream every message that goes
    towards the handler is checked.

    Args:
        check: Takes the message; raises `ValueError` with what is wrong, or any `CallError`, or
            returns False. It may be async, but not for streams.
    """

    def __init__(self, check: Callable[[object], object]) -> None:
        if not callable(check):
            raise SetupError(f"Validate({check!r}): say a function that takes the message")
        self._check = check
        self._is_async = inspect.iscoroutinefunction(check) or inspect.iscoroutinefunction(
            getattr(check, "__call__", None)  # noqa: B004 - an object with an async `__call__`
        )
        self._name = getattr(check, "__name__", type(check).__name__)

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Check, then pass on."""
        if call.spec.kind is Kind.STREAM:
            if self._is_async:
                raise SetupError(f"Validate({self._name}): the check of a stream cannot be async")
            call.taps.append(_CheckingTap(self, call.spec.side))
            return call_next(call)
        if self._is_async:
            return self._check_first(call, call_next)
        self.check(call.message)
        return call_next(call)

    async def _check_first(self, call: Call, call_next: Handler) -> object:
        try:
            fits = await cast("Awaitable[object]", self._check(call.message))
        except ValueError as wrong:
            raise _refusal(wrong) from wrong
        self._refuse_false(fits)
        return await call_next(call)

    def check(self, message: object) -> None:
        """Check one message.

        Raises:
            InvalidArgument: It is wrong.
        """
        try:
            fits = self._check(message)
        except ValueError as wrong:
            raise _refusal(wrong) from wrong
        self._refuse_false(fits)

    def _refuse_false(self, fits: object) -> None:
        if fits is False:
            raise InvalidArgument(f"the message does not pass {self._name}", not_run=True)


def _refusal(wrong: ValueError) -> CallError:
    return InvalidArgument(str(wrong), not_run=True)


class _CheckingTap:
    """Checks the messages of a stream that go towards the handler."""

    def __init__(self, validate: Validate, side: Side) -> None:
        self._validate = validate
        self._checks_outgoing = side is Side.CLIENT

    def outgoing(self, message: object, /) -> object:
        """Check what leaves the client."""
        if self._checks_outgoing:
            self._validate.check(message)
        return message

    def incoming(self, message: object, /) -> object:
        """Check what arrives at the handler."""
        if not self._checks_outgoing:
            self._validate.check(message)
        return message
