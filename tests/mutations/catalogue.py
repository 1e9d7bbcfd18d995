"""All bugs of the package that its tests must find, but for those of streams.

The simulator finds those: `tests/simulation/bugs.py`.
"""

from __future__ import annotations

from tests.mutations.bugs import calls, events, outside, registry, wrappers

BUGS = (*calls.BUGS, *events.BUGS, *registry.BUGS, *wrappers.BUGS, *outside.BUGS)
