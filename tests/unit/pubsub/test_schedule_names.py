"""Which events for later are one and the same."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from busmicro.pubsub.schedule import schedule_lines

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "other",
    [("orders.sent", "shop", "17"), ("orders.paid", "till", "17"), ("orders.paid", "shop", "18")],
)
def test_events_for_later_take_one_anothers_place_only_if_all_is_the_same(
    other: tuple[str, str, str],
):
    """The same id on another subject, or of another producer, is another event."""
    target, producer, id = other
    name, _lines = schedule_lines("orders.paid", "shop", "17", AT, 4)

    assert schedule_lines("orders.paid", "shop", "17", AT, 4)[0] == name
    assert schedule_lines(target, producer, id, AT, 4)[0] != name
