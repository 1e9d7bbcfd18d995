"""`busmicro demo`: the first thing that a stranger runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time


def test_demo_shows_the_main_job_and_ends_by_itself():
    """In under a minute: calls, the registry, load over three nodes, one killed, none failed."""
    began = time.monotonic()

    shown = subprocess.run(
        [sys.executable, "-m", "busmicro", "demo"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    assert "HelloReply(greeting='Hello John'" in shown.stdout
    assert shown.stdout.count("hello, Debug.Health, Debug.Stats") == 3
    assert re.search(r"\d{4} calls, 0 failed", shown.stdout)
    assert "busmicro call greeter hello" in shown.stdout
    assert time.monotonic() - began < 60
