"""A view that is patient, and a watcher that hears of each end once."""

from __future__ import annotations

import asyncio

from busmicro.registry.base import ChangeKind, Node
from busmicro.registry.watch import LiveView
from busmicro.testing import FakeClock


async def test_patience_takes_no_time_from_anybody(clock: FakeClock):
    """Who had more time left than others are given keeps it."""
    view = LiveView(clock)
    view.put(Node(service="users", id="long"), 30.0)
    view.put(Node(service="users", id="short"), 1.0)

    view.patience(5.0)
    await clock.advance(4.0)
    view.expire()
    assert [node.id for node in view.nodes()] == ["long", "short"]

    await clock.advance(10.0)
    view.expire()
    assert [node.id for node in view.nodes()] == ["long"]


async def test_who_left_before_the_watcher_fell_behind_has_not_left_again(clock: FakeClock):
    """Starting over tells of those who are gone since, and of nobody twice."""
    view = LiveView(clock, limit=3)
    for id in ("early", "late"):
        view.put(Node(service="users", id=id), 30.0)
    watcher = view.watcher()
    heard = [await anext(watcher) for _ in range(2)]
    view.remove("users", "early")
    heard.append(await anext(watcher))
    view.remove("users", "late")
    for number in range(5):  # more than it may fall behind
        view.put(Node(service="users", id=f"new-{number}"), 30.0)
    async with asyncio.timeout(5):
        heard += [await anext(watcher) for _ in range(6)]

    left = [change.node.id for change in heard if change.kind is ChangeKind.LEFT]
    assert left == ["early", "late"]
