"""Every contender of the calls, in the order of the table."""

from __future__ import annotations

from benchmarks.contenders.bare import BARE, WITH_TASKS
from benchmarks.contenders.base import Contender
from benchmarks.contenders.busmicro import BUSMICRO, WRAPPED
from benchmarks.contenders.cliffracer import CLIFFRACER
from benchmarks.contenders.faststream import FASTSTREAM
from benchmarks.contenders.grpc_aio import GRPC_AIO
from benchmarks.contenders.nats_py import NATS_MICRO, NATS_PY

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        BUSMICRO,
        WRAPPED,
        NATS_PY,
        NATS_MICRO,
        FASTSTREAM,
        CLIFFRACER,
        GRPC_AIO,
        BARE,
        WITH_TASKS,
    )
}
