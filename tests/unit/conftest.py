"""What the unit tests share: time that stands still until a test moves it."""

from __future__ import annotations

import pytest

from busmicro.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that the test moves by hand."""
    return FakeClock()
