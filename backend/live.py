"""A bell over Redis pub/sub: *something changed, look at Postgres*. Losing a ring costs one poll interval, nothing else."""

import logging
from collections.abc import AsyncIterator

import redis
import redis.asyncio
from sqlalchemy.orm import Session

from backend.db import after_commit

log = logging.getLogger(__name__)


class Bell:
    """Rings and listens on named channels (``run:17``, ``project:3``)."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=2, socket_connect_timeout=2)

    def ring(self, channel: str) -> None:
        """Wake whoever listens on *channel*; silence is no error."""
        try:
            self._redis.publish(f"studio:{channel}", "1")
        except redis.RedisError:
            log.debug("nobody heard %s: Redis does not answer", channel)

    async def listen(self, channel: str, *, every_seconds: float = 2.0) -> AsyncIterator[None]:
        """Yield at once, then at each ring and at least every *every_seconds*, whether or not Redis lives."""
        import asyncio

        client = redis.asyncio.Redis.from_url(self._url, socket_timeout=None, socket_connect_timeout=2)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        subscribed = False
        try:
            while True:
                yield
                try:
                    if not subscribed:
                        await pubsub.subscribe(f"studio:{channel}")
                        subscribed = True
                    await pubsub.get_message(timeout=every_seconds)
                except (redis.RedisError, OSError):
                    subscribed = False
                    await asyncio.sleep(every_seconds)
        finally:
            await pubsub.aclose()  # type: ignore[no-untyped-call]  # redis-py leaves it unannotated
            await client.aclose()


def ring(session: Session, channel: str) -> None:
    """Ring *channel* once *session* has committed."""
    bell: Bell | None = session.info.get("bell")
    if bell is not None:
        after_commit(session, lambda: bell.ring(channel))
