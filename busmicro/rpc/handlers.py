"""The handlers of a service: what is registered, checked at registration, before any I/O."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias, cast

from busmicro.call import Call, Kind, Side, Spec
from busmicro.codecs import Coders
from busmicro.endpoint import EndpointOptions, Function, Shape, Signature, label, read_signature
from busmicro.errors import SetupError
from busmicro.rpc.stats import Figures
from busmicro.transport import check_endpoint

DEFAULT_TIMEOUT = 5.0

Invoke: TypeAlias = Callable[[Call], Awaitable[object]]


class Endpoint:
    """One endpoint of a service: what it is called, what runs, and what it has done so far."""

    def __init__(
        self,
        service: str,
        name: str,
        function: Function,
        signature: Signature,
        options: EndpointOptions,
    ) -> None:
        self.name = name
        """One word, or two with a dot between."""
        self.function = function
        """What runs."""
        self.signature = signature
        """What it takes and gives."""
        self.options = options
        """What its author said of it."""
        self.figures = Figures()
        """What it has done so far."""
        self.spec = Spec(
            service=service,
            endpoint=name,
            kind=Kind.STREAM if self.streams else Kind.UNARY,
            side=Side.HANDLER,
            idempotent=options.idempotent,
        )
        self.timeout = options.timeout or DEFAULT_TIMEOUT
        """Seconds that a call may take; a stream may take for ever, unless its author says."""
        self.requests = Coders(signature.request_type)
        self.replies = Coders(signature.reply_type)

    @property
    def streams(self) -> bool:
        """Does it take or give many messages?"""
        return self.signature.shape is not Shape.UNARY

    @property
    def takes_many(self) -> bool:
        """Does it take many messages?"""
        return self.signature.shape in (Shape.CLIENT_STREAM, Shape.BOTH)


def invoker(endpoint_function: Function, signature: Signature) -> Invoke:
    """Adapt a user's function to `Handler`: with or without request, with or without the call."""
    function = cast("Callable[..., Awaitable[object]]", endpoint_function)
    takes_request = signature.request_type is not None

    if takes_request and not signature.takes_call:

        def usual(call: Call) -> Awaitable[object]:
            message = call.message
            call.began = True
            return function(message)

        return usual

    def other(call: Call) -> Awaitable[object]:
        message = call.message  # also refuses a payload where none is declared
        call.began = True
        given = (message, call) if takes_request else (call,)
        return function(*given) if signature.takes_call else function()

    return other


class Endpoints:
    """The endpoints of a service, by name, in the order they were registered."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._by_name: dict[str, Endpoint] = {}

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def copy(self) -> Endpoints:
        """Make a set with the same handlers and figures of its own, for one run of the service."""
        other = Endpoints(self._service)
        for e in self:
            other._by_name[e.name] = Endpoint(
                self._service, e.name, e.function, e.signature, e.options
            )
        return other

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return list(self._by_name)

    def add(self, function: Function, options: EndpointOptions, *, prefix: str = "") -> Endpoint:
        """Register a handler.

        Args:
            function: An async function; its type hints say what it takes and gives.
            options: Name and more.
            prefix: Put before the function's own name, with a dot.

        Returns:
            The endpoint.

        Raises:
            SetupError: The signature does not do, or the name is taken. The text names the fix.
        """
        signature = read_signature(function)
        own = getattr(function, "__name__", "")
        name = check_endpoint(options.name or (f"{prefix}.{own}" if prefix else own))
        if name in self._by_name:
            raise SetupError(
                f"{label(function)}: endpoint {name!r} is taken by "
                f"{label(self._by_name[name].function)}; "
                "give one of them another name with @service.rpc('…')"
            )
        try:
            endpoint = Endpoint(self._service, name, function, signature, options)
        except SetupError as wrong:
            raise SetupError(f"{label(function)}: {wrong}") from wrong
        self._by_name[name] = endpoint
        return endpoint
