"""Wrap some exchanges and not others."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from fnmatch import fnmatchcase
from typing import Final

from busmicro.call import Call, Handler, Kind, Spec, Wrapper
from busmicro.errors import SetupError

_MOST_SPECS: Final = 10_000


def only(
    wrapper: Wrapper,
    *,
    endpoints: Sequence[str] = (),
    kinds: Sequence[Kind] = (),
    services: Sequence[str] = (),
) -> Only:
    """Put a wrapper around those exchanges that fit everything that is said.

    Args:
        wrapper: What goes around them.
        endpoints: Patterns such as `Users.*`, for names of endpoints, or for `service.endpoint`;
            one of them has to fit. `*`, `?` and `[…]` as in file names, case counts. For events,
            the endpoint is what `call.spec.endpoint` says.
        kinds: Calls, streams or events; one of them.
        services: Patterns for names of services; one of them has to fit.

    Returns:
        A wrapper, which costs a look-up where it does not apply.

    Raises:
        SetupError: Nothing was said, or a text stands where a list has to.
    """
    return Only(wrapper, endpoints, kinds, services)


class Only:
    """What `only` makes: a wrapper that applies to some exchanges."""

    def __init__(
        self,
        wrapper: Wrapper,
        endpoints: Sequence[str],
        kinds: Sequence[Kind],
        services: Sequence[str],
    ) -> None:
        for name, given in (("endpoints", endpoints), ("services", services)):
            if isinstance(given, str):
                raise SetupError(f"only({name}={given!r}): say a list, {name}=[{given!r}]")
        if not endpoints and not kinds and not services:
            raise SetupError(
                "only(): say endpoints=[…], kinds=[…] or services=[…], or leave it out"
            )
        self.wrapper = wrapper
        """What goes around those that fit."""
        self._endpoints = tuple(endpoints)
        self._kinds = frozenset(kinds)
        self._services = tuple(services)
        # By identity, for hashing a spec costs ten times as much; it holds the spec, so the
        # identity stays its own.
        self._decided: dict[int, tuple[bool, Spec]] = {}

    def __call__(self, call: Call, call_next: Handler, /) -> Awaitable[object]:
        """Wrap it, or pass it on."""
        decided = self._decided.get(id(call.spec)) or self._decide(call.spec)
        return self.wrapper(call, call_next) if decided[0] else call_next(call)

    def applies_to(self, spec: Spec) -> bool:
        """Tell whether it goes around the exchanges of a spec."""
        if self._kinds and spec.kind not in self._kinds:
            return False
        if self._services and not _fits(spec.service, self._services):
            return False
        return (
            not self._endpoints
            or _fits(spec.endpoint, self._endpoints)
            or _fits(f"{spec.service}.{spec.endpoint}", self._endpoints)
        )

    def _decide(self, spec: Spec) -> tuple[bool, Spec]:
        if len(self._decided) >= _MOST_SPECS:
            self._decided.clear()
        decided = self._decided[id(spec)] = (self.applies_to(spec), spec)
        return decided


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
