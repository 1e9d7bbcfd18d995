"""Find out which wrapper is wrong, and say so by name."""

from __future__ import annotations

import inspect

from busmicro.call import Call, Handler, Kind, Wrapper
from busmicro.errors import SetupError


def wrapper_name(wrapper: object) -> str:
    """Return what a wrapper is called in its author's code."""
    return str(getattr(wrapper, "__qualname__", type(wrapper).__qualname__))


def check_wrapper(wrapper: object) -> None:
    """Refuse at registration what cannot be a wrapper.

    Raises:
        SetupError: It cannot be called with `(call, call_next)`. The text names it and the fix.
    """
    name = wrapper_name(wrapper)
    if isinstance(wrapper, type):
        raise SetupError(f"wrapper {name} is a class: make one, {name}(…)")
    if not callable(wrapper):
        raise SetupError(f"{wrapper!r} is no wrapper: say `async def wrapper(call, call_next)`")
    try:
        signature = inspect.signature(wrapper)
    except ValueError:  # some built-in things do not tell
        return
    try:
        signature.bind(None, None)
    except TypeError as wrong:
        raise SetupError(
            f"wrapper {name}{signature} must take (call, call_next): {wrong}"
        ) from wrong


def checked(wrapper: Wrapper) -> Wrapper:
    """Watch over a wrapper: what it does wrong is raised as an error that names it.

    That is: it is not async; it returns what it should have awaited; it ends a stream without
    `call_next`, or calls that again after the stream was open; it drops the reply, because it lacks
    a `return`.

    Args:
        wrapper: Anyone's. Those of busmicro are tested, and are returned as they are.

    Returns:
        A wrapper that does the same.

    Raises:
        SetupError: It cannot be a wrapper. From the wrapper: it did something wrong.
    """
    check_wrapper(wrapper)
    if type(wrapper).__module__.startswith("busmicro."):
        return wrapper
    return _Checked(wrapper)


class _Checked:
    """What `checked` makes."""

    def __init__(self, wrapper: Wrapper) -> None:
        self.wrapper = wrapper
        self._name = wrapper_name(wrapper)

    async def __call__(self, call: Call, call_next: Handler, /) -> object:
        """Run the wrapper, and look at what it does."""
        seen = _Seen(self._name, call, call_next)
        ended = self.wrapper(call, seen)
        if not hasattr(ended, "__await__"):
            raise SetupError(
                f"wrapper {self._name} returned {type(ended).__name__}, which cannot be awaited: "
                "make it an `async def`"
            )
        reply = await ended
        seen.check(reply)
        return reply


class _Seen:
    """The `call_next` that a wrapper is given, and what it did with it."""

    __slots__ = ("_call", "_call_next", "_name", "_opened", "calls", "replied")

    def __init__(self, name: str, call: Call, call_next: Handler) -> None:
        self._name = name
        self._call = call
        self._call_next = call_next
        self._opened = False
        self.calls = 0
        self.replied: object = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._call_next, name)  # such as `leaves_call_alone`

    async def __call__(self, call: Call) -> object:
        if self._opened:
            raise SetupError(
                f"wrapper {self._name} called call_next again after the stream was open: it may "
                "only be opened again if opening it failed"
            )
        self.calls += 1
        try:
            self.replied = await self._call_next(call)
        finally:
            self._opened = self._call.spec.kind is Kind.STREAM and call.began
        return self.replied

    def check(self, reply: object) -> None:
        """Look at how it ended."""
        if hasattr(reply, "__await__"):
            reply_of = type(reply).__name__
            if inspect.iscoroutine(reply):
                reply.close()
            raise SetupError(
                f"wrapper {self._name} returned a {reply_of}: say `return await call_next(call)`"
            )
        if not self.calls and self._call.spec.kind is Kind.STREAM:
            raise SetupError(
                f"wrapper {self._name} ended a stream without call_next: let it raise instead"
            )
        if reply is None and self.replied is not None:
            raise SetupError(
                f"wrapper {self._name} dropped the reply: say `return await call_next(call)`"
            )
