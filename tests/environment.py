"""Where the processes that tests start find what they import."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
PYTHONPATH = f"{ROOT / 'tests' / 'plain'}{os.pathsep}{ROOT}"
"""The package and its tests, as installed without the extra that takes longest to import."""
