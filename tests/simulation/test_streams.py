"""Streams keep their promises on any network: order, credit, one end, nothing left behind.

Each seed is a world of its own, see `plans.py`; what must hold is in `judge.py`, `wire.py` and
`simulation.py`.  `BUSMICRO_SEED=17 pytest tests/simulation/test_streams.py` runs one of them again.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.simulation import Simulation, complain

SEEDS = 10_000 if os.environ.get("BUSMICRO_FAULTS") == "full" else 1_000
CHUNK = 50
ONE = os.environ.get("BUSMICRO_SEED")
FIRSTS = [int(ONE)] if ONE else range(0, SEEDS, CHUNK)


@pytest.mark.parametrize("first", FIRSTS)
def test_streams_keep_their_promises(first: int):
    """Whatever the network does, both ends agree, and nothing is lost without an error."""
    failed = []
    for seed in range(first, first + (1 if ONE else CHUNK)):
        verdict = Simulation(seed).run()
        if verdict.faults:
            failed.append(complain(verdict))
    assert not failed, "\n".join(failed)
