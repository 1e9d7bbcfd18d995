"""Run seeds, from the first number up to the second, until one fails.

`python -m tests.simulation.replay 0 300`, and to see all that one of them sends over the wire,
`python -m tests.simulation.replay 17 18 --log`.  `--all` goes on after a failure, `--digests` says
of each seed what its run amounted to.
"""

from __future__ import annotations

import sys
import time

import busmicro
from tests.simulation.simulation import Simulation, complain


def main(arguments: list[str]) -> int:
    """Run the seeds; 1 if one failed."""
    first, beyond = (int(word) for word in arguments if word.isdecimal())
    print(f"busmicro of {busmicro.__file__}")
    failed, began = 0, time.perf_counter()
    for seed in range(first, beyond):
        verdict = Simulation(seed, log="--log" in arguments).run()
        if "--log" in arguments:
            print(*verdict.log, sep="\n")
        if "--log" in arguments or "--digests" in arguments:
            print(seed, verdict.digest, *verdict.outcomes, sep="\n")
        if verdict.faults:
            print(complain(verdict), flush=True)
            failed += 1
            if "--all" not in arguments:
                break
    print(f"{failed} seeds failed, {time.perf_counter() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
