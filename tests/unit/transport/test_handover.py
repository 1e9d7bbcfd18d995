"""Two connections that bring the same messages: whatever the order, each is delivered once."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from busmicro.transport.base import Subscription
from busmicro.transport.fastpath import FastPath
from busmicro.transport.handover import Handover


def path(subscriptions: dict[bytes, Subscription]) -> FastPath:
    """Make a connection that is not connected: what it writes goes nowhere."""
    return FastPath(
        subscriptions,
        on_denied=lambda _text: None,
        on_lost=lambda _path: None,
        max_waiting_bytes=1_000_000,
    )


class Listening:
    """A process that listens to one subject, by an old connection and a new one."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.live = {b"b1": Subscription(b"b1", "told", "", self._on_message)}
        self.old, self.new = path(self.live), path({})
        self.handover = Handover(self.old, self.new, self.live)
        self.handover.begin(set())

    def _on_message(self, _subject: bytes, _reply: bytes, _header: bytes, payload: bytes) -> None:
        self.heard.append(payload)
        if payload.endswith(b"0"):
            raise RuntimeError("a callback of a user")


def bring(way: FastPath, message: bytes) -> None:
    way.data_received(b"MSG told b1 %d\r\n%b\r\n" % (len(message), message))


def mixed(chance: random.Random, lists: list[list[bytes]]) -> list[bytes]:
    """Mix what several publishers send, each in its own order."""
    waiting = [list(one) for one in lists]
    found = []
    while any(waiting):
        found.append(chance.choice([one for one in waiting if one]).pop(0))
    return found


async def handed_over(seed: int, publishers: int, count: int) -> None:
    chance = random.Random(seed)
    told = [[b"%d/%d" % (who, n) for n in range(count)] for who in range(publishers)]
    begins = [chance.randint(0, count) for _ in told]
    ends = [chance.randint(begin, count) for begin in begins]
    listening = Listening()
    by_old = mixed(chance, [one[:end] for one, end in zip(told, ends, strict=True)])
    by_new = mixed(chance, [one[begin:] for one, begin in zip(told, begins, strict=True)])
    early = chance.randint(0, len(by_new))  # what the new one brings before the old one is empty
    for is_old in chance.sample([True] * len(by_old) + [False] * early, len(by_old) + early):
        bring(listening.old if is_old else listening.new, (by_old if is_old else by_new).pop(0))
    listening.handover.end()
    copies = [at for at, message in enumerate(by_new) if message in listening.heard]
    settled = chance.randint(copies[-1] + 1 if copies else 0, len(by_new))
    for message in by_new[:settled]:
        bring(listening.new, message)
    listening.handover.settle()
    for message in by_new[settled:]:
        bring(listening.new, message)
    bring(listening.old, b"late")

    assert sorted(listening.heard) == sorted(each for one in told for each in one)
    for who, one in enumerate(told):
        assert [each for each in listening.heard if each.startswith(b"%d/" % who)] == one


@given(seed=st.integers(0, 2**32), publishers=st.integers(1, 3), count=st.integers(0, 30))
def test_each_message_is_delivered_once_and_in_its_order(seed: int, publishers: int, count: int):
    """By the old connection, the new one or both, earlier here or there: nobody can tell."""
    asyncio.run(handed_over(seed, publishers, count))


async def test_old_connection_that_is_far_behind_is_waited_for_no_longer():
    """What is held back is bounded: beyond the bound it is delivered, and by the new one alone."""
    listening = Listening()
    messages = [b"n%d." % number for number in range(12_000)]

    for message in messages:
        bring(listening.new, message)
    for message in messages:
        bring(listening.old, message)

    assert listening.heard == messages


async def test_move_that_is_given_up_leaves_everything_to_the_old_connection():
    """What the new connection has brought by then does not come a second time."""
    listening = Listening()
    bring(listening.new, b"1")
    bring(listening.old, b"1")

    listening.handover.give_up()
    bring(listening.new, b"2")
    bring(listening.old, b"2")

    assert listening.heard == [b"1", b"2"]


async def test_subject_that_has_been_left_is_heard_no_more():
    """Neither what comes by the old connection nor what was held back reaches who has gone."""
    listening = Listening()
    bring(listening.new, b"1")
    listening.live.clear()

    bring(listening.old, b"2")
    listening.handover.end()

    assert listening.heard == []
