"""What was asked for and what was seen to happen, and the rules that both have to agree by.

An operation is invoked once and has one outcome: it is *ok*, it *failed* (it was certainly not
done), or it is *unknown* what became of it.  Its value, `<process>-<counter>`, is its own, so the
far end's record of what it began and what it has done can be held against that: what is ok is done,
what failed was not begun, what is unknown may be either; nothing is done twice, unless that is
allowed, and nothing was made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 5


@dataclass(slots=True)
class Operations:
    """The operations of a run, and what was seen of them."""

    twice_allowed: bool = False
    """May an operation be done twice, because whoever asked may have asked again?"""
    invoked: list[str] = field(default_factory=list)
    ok: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    begun: list[str] = field(default_factory=list)
    """At the far end, one entry for each beginning."""
    done: list[str] = field(default_factory=list)
    """At the far end, one entry for each time that it got to its end."""

    def lost(self) -> list[str]:
        """Say which are ok, but were not done."""
        done = set(self.done)
        return [value for value in self.ok if value not in done]

    def done_after_all(self) -> list[str]:
        """Say which failed, but were begun."""
        begun = {*self.begun, *self.done}
        return [value for value in self.failed if value in begun]

    def done_twice(self) -> list[str]:
        """Say which were begun or done more than once, allowed or not."""
        return list(dict.fromkeys([*repeated(self.begun), *repeated(self.done)]))

    def made_up(self) -> list[str]:
        """Say which were seen, or came to an end, though nobody invoked them."""
        invoked = set(self.invoked)
        seen = [*self.begun, *self.done, *self.ok, *self.failed, *self.unknown]
        return [value for value in dict.fromkeys(seen) if value not in invoked]

    def open(self) -> list[str]:
        """Say which have no outcome."""
        ended = {*self.ok, *self.failed, *self.unknown}
        return [value for value in self.invoked if value not in ended]

    def ended_twice(self) -> list[str]:
        """Say which have more than one outcome, or were invoked more than once."""
        twice = repeated([*self.ok, *self.failed, *self.unknown])
        return list(dict.fromkeys([*twice, *repeated(self.invoked)]))

    def faults(self) -> dict[str, list[str]]:
        """Return every broken rule and the operations that broke it; empty for none."""
        if not self.ok or not self.done:
            return {"nothing happened": [f"{len(self.ok)} ok, {len(self.done)} done"]}
        return only_broken(
            {
                "ok and not done": self.lost(),
                "failed and done": self.done_after_all(),
                "done twice": [] if self.twice_allowed else self.done_twice(),
                "made up": self.made_up(),
                "without an outcome": self.open(),
                "with two outcomes": self.ended_twice(),
            }
        )

    def must_be_clean(self, *, where: Path, seed: int) -> None:
        """Fail, saying what was broken, where the logs are and how to have the same run again.

        Raises:
            AssertionError: Some rule was broken.
        """
        complain(self.faults(), where=where, seed=seed)


def complain(faults: Mapping[str, list[str]], *, where: Path, seed: int) -> None:
    """Fail if there are faults, with some examples of each.

    Raises:
        AssertionError: There are.
    """
    if faults:
        lines = [f"{fault}: {len(found)}, like {found[:SHOWN]}" for fault, found in faults.items()]
        raise AssertionError("\n".join([*lines, f"logs: {where}", f"seed: {seed}"]))


def only_broken(rules: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Leave out the rules that nothing has broken."""
    return {rule: found for rule, found in rules.items() if found}


def repeated(values: Iterable[str]) -> list[str]:
    """Return the values that are there more than once, each once."""
    return [value for value, count in Counter(values).items() if count > 1]


def logged(log: Path) -> Iterable[list[str]]:
    """Return the words of each whole line; the last one may be cut off by a SIGKILL."""
    for line in log.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line.split()
