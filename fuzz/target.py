"""One target in one process, driven by atheris.

    python fuzz/target.py <target> <folder or file>… [-option=value …]

A file is run once: so is a crash replayed.  Options are libFuzzer's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import atheris


def main() -> None:
    """Run the target that the first argument names."""
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["busmicro"]):
        target = importlib.import_module(f"fuzz.targets.{name}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
