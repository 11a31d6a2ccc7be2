"""Rate limits that several web processes share through Redis; without Redis each process counts for itself, never not at all."""

import logging
from collections.abc import Callable

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from backend.errors import TooMany

log = logging.getLogger(__name__)

PER_ACCOUNT = RateLimitItemPerMinute(5)
PER_ADDRESS = RateLimitItemPerMinute(20)


class TooManyTries(TooMany):
    """Too many tries; wait a minute."""


class RateLimits:
    """Moving windows over Redis at *redis_url*, with an in-memory copy that takes over while Redis does not answer.

    *studio* keeps the windows of several studios on one Redis apart.
    """

    def __init__(self, redis_url: str | None, studio: str = "") -> None:
        self._studio = studio
        self._memory = MovingWindowRateLimiter(MemoryStorage())
        self._redis: MovingWindowRateLimiter | None = None
        self._redis_url = redis_url

    def hit(self, limit: RateLimitItem, *who: str) -> None:
        """Count one try of *who*; raises :class:`TooManyTries` when there were more than *limit* allows."""
        # the process's own count goes on all the time, so that losing Redis does not forget what was tried already
        if not self._memory.hit(limit, *who) or not self._shared(
            lambda limiter: limiter.hit(limit, self._studio, *who)
        ):
            raise _refusal()

    def look(self, limit: RateLimitItem, *who: str) -> None:
        """The same without counting."""
        if not self._memory.test(limit, *who) or not self._shared(
            lambda limiter: limiter.test(limit, self._studio, *who)
        ):
            raise _refusal()

    def _shared(self, ask: Callable[[MovingWindowRateLimiter], bool]) -> bool:
        if self._redis_url is None:
            return True
        try:
            self._redis = self._redis or MovingWindowRateLimiter(
                RedisStorage(self._redis_url, socket_timeout=1, socket_connect_timeout=1)
            )
            return ask(self._redis)
        except Exception as error:  # whatever the driver raises: the process's own count still holds
            log.warning("tries are counted per process: Redis does not answer (%s)", type(error).__name__)
            return True


def _refusal() -> TooManyTries:
    return TooManyTries("There were more tries than one person makes.", remedy="Wait a minute, then try again.")
