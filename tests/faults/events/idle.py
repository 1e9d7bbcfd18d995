"""Says its process id and waits to be ended."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # what comes early waits
    with Path(sys.argv[1]).open("a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")
    signal.sigwait({signal.SIGTERM})
