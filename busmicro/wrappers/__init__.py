"""What goes around calls, streams and events; one shape, `busmicro.call.Wrapper`, for all."""

from busmicro.wrappers.effects import EffectStore, MemoryStore, SqliteStore
from busmicro.wrappers.once import once
from busmicro.wrappers.recover import Recover, recovered
from busmicro.wrappers.retry import Budget, Retry

__all__ = [
    "Budget",
    "EffectStore",
    "MemoryStore",
    "Recover",
    "Retry",
    "SqliteStore",
    "once",
    "recovered",
]
