"""Says what goes wrong at run time, where LMCache must not hear of it: once, then once a minute."""

from __future__ import annotations

import logging
import threading
import time

from lmcache.logging import CustomFormatter, get_log_level

from lmcache_beluga.errors import PoolClosedError

logger = logging.getLogger("lmcache_beluga")

QUIET_S = 60.0

_CLOSED = PoolClosedError.__name__


def log_as_lmcache() -> None:
    """Where nobody has said what becomes of log messages, as in vLLM, write them as LMCache does
    its own. Without that, Python prints bare warnings, and nothing of lesser weight."""
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(CustomFormatter())
    logger.addHandler(handler)
    logger.setLevel(min(get_log_level(), logging.WARNING))


class TroubleLog:
    """Logs each kind of trouble at most once in ``QUIET_S`` seconds, with how often it occurred."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}

    def due(self, kind: str, count: int = 1) -> int:
        """Count ``count`` more troubles of a kind; how many to report now, 0 to stay quiet."""
        now = time.monotonic()
        with self._lock:
            unsaid = self._unsaid.get(kind, 0) + count
            last = self._last.get(kind)
            if last is not None and now - last < QUIET_S:
                self._unsaid[kind] = unsaid
                return 0
            self._last[kind] = now
            self._unsaid[kind] = 0
            return unsaid

    def failed(self, operation: str, error: BaseException) -> None:
        """Report that ``operation`` raised ``error`` and LMCache was told of a miss."""
        # Errors of this package explain themselves; for others the place matters.
        ours = type(error).__module__ == "lmcache_beluga.errors"
        kind = type(error).__name__ if ours else f"{operation}: {error!r}"
        if times := self.due(kind):
            logger.error(
                "%s failed (%d times since last reported); LMCache goes on without the pool's "
                "chunks: %s: %s%s",
                operation,
                times,
                type(error).__name__,
                error,
                ". Restart this engine to use the pool again" if kind == _CLOSED else "",
                exc_info=None if ours else error,
            )
