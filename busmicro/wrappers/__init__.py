"""What goes around calls, streams and events; one shape, `busmicro.call.Wrapper`, for all."""

from busmicro.wrappers.recover import Recover
from busmicro.wrappers.retry import Budget, Retry

__all__ = ["Budget", "Recover", "Retry"]
