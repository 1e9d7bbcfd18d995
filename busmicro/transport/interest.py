"""Who listens to a subject: NATS' rules for `*`, `>` and queue groups, as a tree of words."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class _Level(Generic[T]):
    """What is known of one word of a subject."""

    __slots__ = ("below", "here", "rest", "star")

    def __init__(self) -> None:
        self.below: dict[bytes, _Level[T]] = {}
        self.star: _Level[T] | None = None
        self.rest: _Level[T] | None = None
        self.here: dict[str, list[T]] = {}

    def __bool__(self) -> bool:
        return bool(self.below or self.star or self.rest or self.here)

    def follow(self, word: bytes) -> _Level[T] | None:
        if word == b"*":
            return self.star
        return self.rest if word == b">" else self.below.get(word)

    def put(self, word: bytes, level: _Level[T] | None) -> None:
        if word == b"*":
            self.star = level
        elif word == b">":
            self.rest = level
        elif level is None:
            del self.below[word]
        else:
            self.below[word] = level


class Interest(Generic[T]):
    """Listeners by the subjects that they listen to."""

    def __init__(self) -> None:
        self._root: _Level[T] = _Level()

    def __bool__(self) -> bool:
        return bool(self._root)

    def add(self, subject: bytes, queue: str, listener: T) -> None:
        """Let a listener hear of a subject.

        Args:
            subject: May hold wildcards.
            queue: The queue group that it is a member of; empty for none.
            listener: Who.
        """
        level = self._root
        for word in subject.split(b"."):
            following = level.follow(word)
            if following is None:
                following = _Level()
                level.put(word, following)
            level = following
        level.here.setdefault(queue, []).append(listener)

    def remove(self, subject: bytes, queue: str, listener: T) -> None:
        """Forget what `add` was told, and every word that nobody else asks for.

        Raises:
            ValueError: It was not told.
        """
        path: list[tuple[_Level[T], bytes]] = []
        level = self._root
        for word in subject.split(b"."):
            path.append((level, word))
            following = level.follow(word)
            if following is None:
                raise ValueError(f"nobody listens to {subject!r}")
            level = following
        members = level.here.get(queue, [])
        members.remove(listener)
        if not members:
            del level.here[queue]
        for above, word in reversed(path):
            if above.follow(word):
                break
            above.put(word, None)

    def match(self, subject: bytes) -> dict[str, list[T]]:
        """Find who listens to a subject.

        Returns:
            The listeners by queue group; below the empty name those of none. A group is one group
            whatever its members' wildcards are, as on a NATS server.
        """
        found: dict[str, list[T]] = {}
        levels = [self._root]
        for word in subject.split(b"."):
            following = []
            for level in levels:
                if level.rest is not None:
                    _gather(level.rest, found)
                if level.star is not None:
                    following.append(level.star)
                if (exact := level.below.get(word)) is not None:
                    following.append(exact)
            levels = following
        for level in levels:
            _gather(level, found)
        return found


def _gather(level: _Level[T], found: dict[str, list[T]]) -> None:
    for queue, members in level.here.items():
        found[queue] = found[queue] + members if queue in found else members
