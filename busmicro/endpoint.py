"""Endpoints: what a handler's signature says, read once, at registration.

The shape follows the signature: ``(request) -> Reply`` is a call; ``AsyncIterator`` on either side
makes it a stream.  A second parameter gets the `Call`.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar, get_args, get_origin, get_type_hints

from busmicro.call import Call
from busmicro.errors import SetupError

Function = Callable[..., Awaitable[object] | AsyncIterator[object]]
F = TypeVar("F", bound=Function)

_OPTIONS = "__busmicro_endpoint__"
_MANY = (AsyncIterator, AsyncIterable, AsyncGenerator)


class Shape(enum.Enum):
    """How many messages go which way."""

    UNARY = "unary"
    """One there, one back."""
    SERVER_STREAM = "server_stream"
    """One there, many back."""
    CLIENT_STREAM = "client_stream"
    """Many there, one back."""
    BOTH = "both"
    """Many both ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOptions:
    """What an author says of an endpoint beyond its signature."""

    name: str = ""
    """Its name on the bus; empty for the function's own."""
    timeout: float | None = None
    """Seconds it may take when the caller does not say; None for the service's default."""
    idempotent: bool = False
    """May it safely run twice? Then more failures are worth another try."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Shown to whoever looks the service up."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.timeout is not None and not 0 < self.timeout <= 86_400:
            raise SetupError(f"timeout={self.timeout}: say seconds, more than 0, at most 86,400")


def endpoint_options(
    name: str = "",
    *,
    timeout: float | None = None,
    idempotent: bool = False,
    metadata: dict[str, str] | None = None,
) -> Callable[[F], F]:
    """Say more of a method that `Service.handle` will serve and `Client.stub` will call.

    Args:
        name: Its name on the bus, one word or two with a dot between.
        timeout: Seconds it may take when the caller does not say.
        idempotent: May it safely run twice?
        metadata: Shown to whoever looks the service up.

    Returns:
        A decorator that leaves the function as it is.
    """
    options = EndpointOptions(
        name=name, timeout=timeout, idempotent=idempotent, metadata=metadata or {}
    )

    def mark(function: F) -> F:
        setattr(function, _OPTIONS, options)
        return function

    return mark


def options_of(function: object) -> EndpointOptions:
    """Read what `endpoint_options` said of a function."""
    found = getattr(function, _OPTIONS, None)
    return found if isinstance(found, EndpointOptions) else EndpointOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a handler takes and gives."""

    shape: Shape
    """How many messages go which way."""
    request_type: object
    """The type of its request, `None` if it takes none."""
    reply_type: object
    """The type of its reply, `None` if it gives none."""
    takes_call: bool
    """Does it want the `Call`?"""
    doc: str
    """The first paragraph of its docstring."""


def label(function: object) -> str:
    """Name a function for error texts: where it stands and what it is called."""
    name = getattr(function, "__qualname__", repr(function))
    code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else str(name)


def read_signature(function: Function) -> Signature:
    """Read a handler's signature.

    Args:
        function: A function, or a method bound to its object.

    Returns:
        What it takes and gives.

    Raises:
        SetupError: It is not async, lacks type hints, or takes what nobody will give it. The text
            names the function and the fix.
    """
    is_generator = inspect.isasyncgenfunction(function)
    if not is_generator and not inspect.iscoroutinefunction(function):
        raise SetupError(
            f"{label(function)} is not async: write 'async def'; "
            "a method that is no endpoint begins with an underscore"
        )
    hints = hints_of(function)
    request, takes_call = _parameters(function, hints)
    if "return" not in hints:
        raise SetupError(
            f"{label(function)} does not say what it returns: add '-> Reply', or '-> None'"
        )
    for hint in (request, hints["return"]):
        if hint in _MANY or (get_origin(hint) in _MANY and not get_args(hint)):
            raise SetupError(
                f"{label(function)}: an iterator of what? Say 'AsyncIterator[Message]'"
            )
    sends_many, request_type = _unwrap(request)
    gives_many, reply_type = _unwrap(hints["return"])
    if is_generator and not gives_many:
        raise SetupError(f"{label(function)} yields: say '-> AsyncIterator[Reply]'")
    return Signature(
        shape=_shape(sends_many=sends_many, gives_many=gives_many),
        request_type=request_type,
        reply_type=reply_type,
        takes_call=takes_call,
        doc=(inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " "),
    )


def hints_of(function: Function) -> dict[str, object]:
    """Return a function's type hints, constraints and all.

    Raises:
        SetupError: One of them cannot be resolved.
    """
    try:
        return get_type_hints(function, include_extras=True)  # constraints are in Annotated
    except Exception as unresolved:
        raise SetupError(
            f"the type hints of {label(function)} cannot be resolved ({unresolved}): "
            "import the types at run time, not under TYPE_CHECKING, and define them at module level"
        ) from unresolved


def _parameters(function: Function, hints: dict[str, object]) -> tuple[object, bool]:
    """Find the request's type and whether the handler wants the call."""
    parameters = list(inspect.signature(function).parameters.values())
    for p in parameters:
        if p.name not in hints:
            raise SetupError(f"{label(function)}: parameter {p.name!r} has no type hint: add one")
        if p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            raise SetupError(f"{label(function)}: a handler takes (request) or (request, call)")
    types = [hints[p.name] for p in parameters]
    takes_call = bool(types) and types[-1] is Call
    requests = types[:-1] if takes_call else types
    if len(requests) > 1:
        raise SetupError(
            f"{label(function)} takes {len(requests)} messages: "
            "a handler takes (request) or (request, call: Call); put the rest into the request"
        )
    return (requests[0] if requests else None), takes_call


def _unwrap(hint: object) -> tuple[bool, object]:
    """Tell an iterator of messages from a message."""
    if get_origin(hint) in _MANY and get_args(hint):
        return True, get_args(hint)[0]
    return False, None if hint is type(None) else hint


def _shape(*, sends_many: bool, gives_many: bool) -> Shape:
    if sends_many:
        return Shape.BOTH if gives_many else Shape.CLIENT_STREAM
    return Shape.SERVER_STREAM if gives_many else Shape.UNARY


def public_methods(cls: type) -> dict[str, Function]:
    """List the methods of a class that become endpoints: public, async, in order of definition."""
    return {
        name: member
        for base in reversed(cls.__mro__[:-1])
        for name, member in vars(base).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }
