"""What the fault tests share: programs, seeds, and how much of it there shall be."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.processes import Programs


@pytest.fixture
def full() -> bool:
    """Is this the long form of the tests (BUSMICRO_FAULTS=full)?"""
    return os.environ.get("BUSMICRO_FAULTS") == "full"


@pytest.fixture
def seed() -> int:
    """What decides when faults strike; BUSMICRO_FAULTS_SEED repeats a run."""
    given = os.environ.get("BUSMICRO_FAULTS_SEED")
    chosen = int(given) if given else random.SystemRandom().randrange(1_000_000)
    print(f"seed: {chosen}")
    return chosen


@pytest.fixture
async def programs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Programs]:
    """Programs of the test's folder that do not outlive the test; their logs do."""
    running = Programs(request.path.parent, tmp_path)
    print(f"logs: {tmp_path}")
    yield running
    await running.stop()
