"""What the fault tests of events share: an observer past everything that is tested, and disks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from busmicro import NatsServer
from tests.faults.events.disk import FragileDisk, NotHere, SmallDisk
from tests.faults.events.observer import Observer, observing
from tests.faults.report import Report

Disk = TypeVar("Disk", FragileDisk, SmallDisk)


@pytest.fixture
async def observer(server: NatsServer) -> AsyncIterator[Observer]:
    """Sees what the server has, past everything that is tested."""
    async with observing(server.port) as own:
        yield own


@pytest.fixture
def fragile_disk(tmp_path: Path, report: Report) -> Iterator[FragileDisk]:
    """A disk whose power can be cut; where there can be none, the test is skipped and says why."""
    with ExitStack() as held:
        yield _held(held, FragileDisk(tmp_path), report, "S36 S37 power cut")


@pytest.fixture
def small_disk(tmp_path: Path, report: Report) -> Iterator[SmallDisk]:
    """A disk that gets full; where there can be none, the test is skipped and says why."""
    with ExitStack() as held:
        yield _held(held, SmallDisk(tmp_path), report, "S42 disk full")


def _held(held: ExitStack, disk: Disk, report: Report, scenario: str) -> Disk:
    try:
        return held.enter_context(disk)
    except NotHere as why:
        report.add(scenario, f"not run here: {why}", "")
        pytest.skip(f"{scenario}: {why}")
