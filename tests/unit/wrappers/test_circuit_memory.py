"""A circuit that has closed again begins anew."""

from __future__ import annotations

from busmicro.wrappers.circuit import REFUSED, Circuit, CircuitOptions, State


def ended(circuit: Circuit, now: float, *, failed: bool) -> None:
    era = circuit.enter(now)
    assert era != REFUSED
    circuit.leave(era, now, failed)


def test_failures_from_before_it_opened_do_not_open_it_again():
    """A service that is well again is not left alone for the next single failure."""
    options = CircuitOptions(error_ratio=0.5, minimum=4, window=10.0, open_for=1.0, probes=1)
    circuit = Circuit(options, lambda: 0.0)
    for _ in range(4):
        ended(circuit, 100.0, failed=True)
    assert circuit.state is State.OPEN
    ended(circuit, 101.0, failed=False)
    assert circuit.state is State.CLOSED

    for _ in range(3):
        ended(circuit, 101.0, failed=True)

    assert circuit.state is State.CLOSED
    ended(circuit, 101.0, failed=True)
    assert circuit.state is State.OPEN
