"""What a server has lost, named event by event, and whether everything else is well."""

from __future__ import annotations

import re
from dataclasses import replace

from busmicro import NatsCluster, NatsServer
from tests.faults.events.history import History
from tests.faults.events.orders import STREAM
from tests.faults.processes import Programs
from tests.faults.report import Report

PROGRAMS = ("p0", "p1", "c0", "c1")
_TOLD = re.compile("stream ORDERS is gone|has lost events|what a power cut left")
_SERVER_TOLD = re.compile(r"\[(WRN|ERR)\].*([Cc]hecksum|[Cc]orrupt|bad message|mismatch)")
_RESTORED = re.compile(rf"Restored ([\d,]+) messages for stream '\$G > {STREAM}'")


def without(history: History, lost: set[str]) -> History:
    """Return the history of all other events."""
    return replace(
        history,
        sent=[id_ for id_ in history.sent if id_ not in lost],
        acked=[ack for ack in history.acked if ack.id not in lost],
        handled=[id_ for id_ in history.handled if id_ not in lost],
        effects=history.effects and [id_ for id_ in history.effects if id_ not in lost],
    )


def add_losses(report: Report, scenario: str, history: History) -> set[str]:
    """Add what a server acknowledged and lost; return the ids of those events."""
    lost = set(history.lost())
    report.add(scenario, "acknowledged and lost by the server, named", len(lost))
    report.add(scenario, "faults of all other events", len(without(history, lost).faults()), "0")
    report.add(scenario, "errors at publishers", len(history.failed), "0")
    return lost


def programs_told(programs: Programs) -> int:
    """Count the publishers and consumers that said that their server has lost something."""
    return sum(bool(_TOLD.search(programs.said(name))) for name in PROGRAMS)


def servers_told(cluster: NatsCluster) -> int:
    """Count the servers whose log warns that something of what they had stored is wrong."""
    return sum(bool(_SERVER_TOLD.search(server.log_tail(100_000))) for server in cluster.servers)


def restored(server: NatsServer) -> int:
    """Return how many events of the stream a server took from its own disk when it started."""
    found = _RESTORED.findall(server.log_tail(100_000))
    return int(found[-1].replace(",", "")) if found else 0
