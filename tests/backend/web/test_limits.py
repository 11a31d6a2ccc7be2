"""Rate limits: shared through Redis, and still there when Redis is not."""

import signal
from pathlib import Path

import pytest

from backend import embedded
from backend.web.limits import PER_ACCOUNT, RateLimits, TooManyTries
from tests.conftest import Servers


def _tries(limits: RateLimits, who: str, n: int) -> int:
    """How many of *n* tries are allowed."""
    allowed = 0
    for _ in range(n):
        try:
            limits.hit(PER_ACCOUNT, who)
            allowed += 1
        except TooManyTries:
            pass
    return allowed


def test_two_processes_count_together_and_two_studios_apart(servers: Servers) -> None:
    one, two = RateLimits(servers.redis, "a"), RateLimits(servers.redis, "a")
    assert _tries(one, "ada", 3) + _tries(two, "ada", 3) == 5
    assert _tries(RateLimits(servers.redis, "b"), "ada", 6) == 5


def test_looking_does_not_count(servers: Servers) -> None:
    limits = RateLimits(servers.redis, "look")
    for _ in range(9):
        limits.look(PER_ACCOUNT, "ada")
    assert _tries(limits, "ada", 6) == 5
    with pytest.raises(TooManyTries):
        limits.look(PER_ACCOUNT, "ada")


def test_brute_force_stays_limited_when_redis_dies_in_between(tmp_path: Path) -> None:
    port = embedded.free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"
    valkey = embedded.start(embedded.valkey_command(tmp_path, port, "secret", durable=False), tmp_path / "log")
    try:
        embedded.wait_until(lambda: embedded.redis_answers(url), "Valkey")
        limits = RateLimits(url)
        assert _tries(limits, "ada", 3) == 3
    finally:
        valkey.send_signal(signal.SIGKILL)
        valkey.wait()
    assert _tries(limits, "ada", 10) == 2
