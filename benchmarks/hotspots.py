"""Where the time of a call goes: the functions that take most of it, at the client and the service.

    python -m benchmarks.hotspots [--seconds 3] [--contender busmicro] [--codec json] [--rows 25]

Both processes run under cProfile, 64 calls in flight, and one after the other, because a profiled
process is several times slower: read the shares, not the seconds.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import sys
from contextlib import AsyncExitStack

from benchmarks import calls
from benchmarks.contenders.every import CONTENDERS
from benchmarks.processes import Worker, nats_server
from benchmarks.worker import Answer

FLIGHTS, SIZE_BYTES = 64, 128
HERE = "benchmarks.hotspots"


async def serve(stack: AsyncExitStack, *, contender: str, url: str) -> Answer:
    """Answer calls, and return what begins to profile, or ends it and tells."""
    await calls.serve(stack, contender=contender, url=url)
    profile = cProfile.Profile()

    async def answer(*, rows: int) -> str:
        if not rows:
            profile.enable()
            return ""
        profile.disable()
        return told(profile, rows)

    return answer


async def make_calls(stack: AsyncExitStack, *, contender: str, url: str) -> Answer:
    """Return what makes calls for so long, and profiles itself if it is asked for rows."""
    make = await calls.make_calls(stack, contender=contender, url=url)

    async def answer(*, rows: int, seconds: float, codec: str) -> str:
        how = {"flights": FLIGHTS, "codec": codec, "headers": True, "size_bytes": SIZE_BYTES}
        await make(seconds=0, **how)
        profile = cProfile.Profile()
        if rows:
            profile.enable()
        await make(seconds=seconds, **how)
        profile.disable()
        return told(profile, rows) if rows else ""

    return answer


def told(profile: cProfile.Profile, rows: int) -> str:
    """Lay out the functions that took most time themselves."""
    out = io.StringIO()
    pstats.Stats(profile, stream=out).strip_dirs().sort_stats("tottime").print_stats(rows)
    lines = out.getvalue().splitlines()
    return "\n".join(line for line in lines if line.strip() and "Ordered by" not in line)


def main() -> None:
    """Profile the service, then the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--contender", choices=CONTENDERS, default="busmicro")
    parser.add_argument("--codec", choices=("json", "protobuf"), default="json")
    parser.add_argument("--rows", type=int, default=25)
    given = parser.parse_args()
    with nats_server() as server:
        who = {"contender": given.contender, "url": server.url}
        how = {"seconds": given.seconds, "codec": given.codec}
        with Worker(f"{HERE}:serve", **who) as service:
            service.ready()
            with Worker(f"{HERE}:make_calls", **who) as client:
                at_client = client.ask(rows=given.rows, **how)
                service.ask(rows=0)
                client.ask(rows=0, **how)
                at_service = service.ask(rows=given.rows)
    print(f"{given.contender}, client\n{at_client}\n\n{given.contender}, service\n{at_service}")


if __name__ == "__main__":
    sys.exit(main())
