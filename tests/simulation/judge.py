"""What must hold of a stream when it is over, by what both applications have seen."""

from __future__ import annotations

from collections.abc import Iterator

from busmicro import (
    CallError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Disconnected,
    FailedPrecondition,
    Internal,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from tests.simulation.applications import OwnFailureError, Record
from tests.simulation.plans import World

_LOST = (Unavailable, Disconnected, DataLoss, ResourceExhausted)
"""How a stream may end where the network does what it likes."""
_SLACK = 0.2


def judge(world: World, record: Record, *, fine_at: float, stood_still: float) -> None:
    """Add what must not be to the faults of the record.

    Args:
        world: What was decided beforehand.
        record: What both sides have seen.
        fine_at: Since when the weather was fine.
        stood_still: Seconds that passed while nobody ran.
    """
    for rule in (_ends, _messages, _endings):
        record.faults += [f"stream {record.plan.number}: {fault}" for fault in rule(world, record)]
    record.faults += _waiting(record, stood_still)
    record.faults += _lateness(world, record, fine_at, stood_still)


def _ends(_world: World, record: Record) -> Iterator[str]:
    """One end at each side, and both know it."""
    if record.entered > 1:
        yield f"the handler was entered {record.entered} times"
    if record.caller.outcome is None:
        yield "the caller does not know how it ended"
    if record.entered and record.node.outcome is None:
        yield "the node does not know how it ended"


def _messages(_world: World, record: Record) -> Iterator[str]:
    """A prefix in order (seen when they came), and all of them where it ended well."""
    caller, node = record.caller, record.node
    if caller.received > node.sent:
        yield f"{caller.received} messages came, {node.sent} were sent"
    if node.received > caller.sent:
        yield f"the node got {node.received} messages, {caller.sent} were sent"
    if caller.outcome == "well":
        if caller.received != node.sent:
            yield f"ended well with {caller.received} messages of {node.sent}"
        if node.outcome != "returned":
            yield f"ended well, but the handler with {node.outcome!r}"
    if node.drained and not (caller.closed and node.received == caller.sent):
        yield f"the node was told of an end after {node.received} messages of {caller.sent}"


def _endings(world: World, record: Record) -> Iterator[str]:
    """Each error has a cause."""
    plan, caller, node = record.plan, record.caller, record.node
    outcome = caller.outcome
    if isinstance(outcome, NotFound | Internal):
        if caller.received != node.sent and plan.shape in {"count", "talk"} and not caller.left:
            yield f"{outcome!r} after {caller.received} messages of {node.sent}"
        if isinstance(outcome, NotFound) != isinstance(node.outcome, NotFound):
            yield f"the caller got {outcome!r}, the handler ended with {node.outcome!r}"
    if not _may_end(world, record):
        yield f"the caller ended with {outcome!r}, the handler with {node.outcome!r}"
    failure = caller.send_failure
    if failure is not None and not isinstance(failure, _reasons(world, record)):
        yield f"sending ended with {failure!r}"


def _reasons(world: World, record: Record) -> tuple[type[CallError], ...]:
    """The errors that sending may end with."""
    plan = record.plan
    timed = world.caller.idle or world.node.idle or plan.timeout or plan.idle
    return (
        FailedPrecondition,
        NotFound,
        *((DeadlineExceeded,) if timed else ()),
        *((Internal,) if plan.node_fails == "crash" else ()),
        *((Cancelled,) if plan.caller_takes is not None or plan.cancel_after is not None else ()),
        *((*_LOST, DeadlineExceeded) if _is_rough(world) else ()),
    )


def _is_rough(world: World) -> bool:
    """May streams end for no reason of their own?"""
    return world.weather == "storm" or world.node_stops_after is not None


def _may_end(world: World, record: Record) -> bool:
    """Is there a reason for how the caller ended?"""
    plan, outcome, left = record.plan, record.caller.outcome, record.caller.left
    timed = world.caller.idle or world.node.idle or plan.timeout or plan.idle
    call = plan.shape == "ask"  # takes five seconds at most, and is not carried over a cut
    opened = world.weather == "calm" or (record.entered > 0 and not call)
    reasons = (
        (outcome == "well", not plan.node_fails),
        (outcome == "left", plan.caller_takes is not None),
        (outcome == "cancelled", plan.cancel_after is not None),
        (isinstance(outcome, OwnFailureError), plan.caller_fails),
        (isinstance(outcome, NotFound), plan.node_fails == "refusal"),
        (isinstance(outcome, Internal), plan.node_fails and "handler failed" in str(outcome)),
        (isinstance(outcome, DeadlineExceeded), timed or call or _is_rough(world)),
        (isinstance(outcome, _LOST), _is_rough(world) or not opened),
        (isinstance(outcome, DataLoss), left and "cut off" in str(outcome)),  # by leaving
    )
    return any(is_so and reason for is_so, reason in reasons)


def _waiting(record: Record, stood_still: float) -> Iterator[str]:
    """No caller waits beyond the time it gave."""
    plan, caller = record.plan, record.caller
    if plan.timeout is None or plan.stub:
        return
    own = plan.up.takes(len(plan.up.sizes)) if plan.stubborn else 0.0
    own += plan.caller_pauses.takes(caller.received)
    took = (caller.ended_at or 0.0) - (caller.began_at or 0.0)
    if took > plan.timeout + own + stood_still + _SLACK:
        yield f"the caller waited {took:.1f} s, its time-out was {plan.timeout} s"


def _lateness(world: World, record: Record, fine_at: float, stood_still: float) -> Iterator[str]:
    """A handler does not outlive its stream."""
    caller, node = record.caller, record.node
    if node.ended_at is None or caller.ended_at is None:
        return
    late = node.ended_at - max(caller.ended_at, fine_at if world.weather == "storm" else 0)
    most = {"calm": 1.0, "mild": 40.0, "storm": 60.0}[world.weather]
    if late > most + stood_still:
        yield f"the handler ended {late:.1f} s after its stream"
