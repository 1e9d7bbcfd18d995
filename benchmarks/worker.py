"""A process that measures or serves for `benchmarks.processes.Worker`, and ends when that does.

    python -m benchmarks.worker benchmarks.crowd:watch '{"url": "nats://…", "count": 10}'

The function gets a stack for what it opens, and returns what answers questions, or None.  Each
question and each answer is one line of JSON; the end of the questions is the end of the process.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

Answer = Callable[..., Awaitable[object]]
ANSWERS = sys.stdout


async def work(target: str, given: dict[str, object]) -> None:
    """Open, say so, answer until nobody asks any more."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        answer: Answer | None = await function(stack, **given)
        say("ready")
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            assert answer is not None
            say(await answer(**json.loads(line)))


def say(answer: object) -> None:
    """Write one line of JSON."""
    ANSWERS.write(json.dumps(answer) + "\n")
    ANSWERS.flush()


if __name__ == "__main__":
    from busmicro.service import fast_loop

    sys.stdout = sys.stderr  # what libraries print is no answer
    with asyncio.Runner(loop_factory=fast_loop()) as runner:
        runner.run(work(sys.argv[1], json.loads(sys.argv[2])))
