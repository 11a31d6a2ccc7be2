"""Rate limits that several web processes share through Redis; without Redis each process counts for itself, never not at all."""

import logging
from collections.abc import Callable

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import MovingWindowRateLimiter

from backend.errors import TooMany

log = logging.getLogger(__name__)

PER_ACCOUNT = RateLimitItemPerMinute(5)
PER_ADDRESS = RateLimitItemPerMinute(20)


class TooManyTries(TooMany):
    """Too many tries; wait a minute."""


class RateLimits:
    """Moving windows over Redis at *redis_url*, with an in-memory copy that takes over while Redis does not answer."""

    def __init__(self, redis_url: str | None) -> None:
        self._memory = MovingWindowRateLimiter(MemoryStorage())
        self._redis: MovingWindowRateLimiter | None = None
        self._make: Callable[[], Storage] | None = None
        if redis_url:
            # "async+" and friends are not in use here; the storage connects on first use
            self._make = lambda: storage_from_string(redis_url, socket_timeout=1, socket_connect_timeout=1)

    def hit(self, limit: RateLimitItem, *who: str) -> None:
        """Count one try of *who*; raises :class:`TooManyTries` when there were more than *limit* allows."""
        # the process's own count goes on all the time, so that losing Redis does not forget what was tried already
        allowed = self._memory.hit(limit, *who)
        if allowed and self._make is not None:
            try:
                self._redis = self._redis or MovingWindowRateLimiter(self._make())
                allowed = self._redis.hit(limit, *who)
            except Exception as error:  # whatever the driver raises: the process's own count still holds
                log.warning("rate limits are counted per process: Redis does not answer (%s)", type(error).__name__)
        if not allowed:
            raise TooManyTries("There were more tries than one person makes.", remedy="Wait a minute, then try again.")
