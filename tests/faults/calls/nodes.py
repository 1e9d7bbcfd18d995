"""Nodes of the service that is called, each a process that can be killed, frozen and ended."""

from __future__ import annotations

from pathlib import Path

from tests.faults.processes import Programs


async def start_nodes(programs: Programs, url: str, *names: str, **env: str) -> None:
    """Start nodes by these names, and return when they serve."""
    for name in names:
        programs.start(name, "node.py", name, BUSMICRO_NATS_URL=url, **env)
    await programs.serve(*names)


def logs(programs: Programs, *names: str) -> list[Path]:
    """Return where these nodes have written down what they did."""
    return [programs.logs / f"{name}.log" for name in names]
