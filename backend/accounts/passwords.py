"""Secrets as the database keeps them.

Passwords: argon2id with OWASP's parameters, constant work for unknown people, a few hashes at once.
"""

import hashlib
import threading

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from backend.errors import Invalid

MIN_LENGTH = 12
MAX_LENGTH = 1024

# OWASP password storage cheat sheet: m = 19 MiB, t = 2, p = 1
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_at_once = threading.BoundedSemaphore(4)  # 4 × 19 MiB: a flood of sign-ins queues here instead of eating the memory
_nobody = _hasher.hash("nobody has this password")

_COMMON = frozenset(
    [
        "123456789012",
        "1234567890123",
        "12345678901234",
        "123456123456",
        "123123123123",
        "111111111111",
        "000000000000",
        "987654321098",
        "098765432109",
        "password1234",
        "password12345",
        "password123456",
        "passwordpassword",
        "password1password",
        "mypassword123",
        "password2024",
        "password2025",
        "password2026",
        "passw0rd1234",
        "p@ssw0rd1234",
        "p@ssword1234",
        "thisismypassword",
        "changemechangeme",
        "changeme1234",
        "changeme12345",
        "qwertyuiop12",
        "qwertyuiop123",
        "qwertyuiopas",
        "qwertyqwerty",
        "qwerty123456",
        "qwerty1234567",
        "1q2w3e4r5t6y",
        "1qaz2wsx3edc",
        "asdfghjkl123",
        "zxcvbnm12345",
        "q1w2e3r4t5y6",
        "abcdefghijkl",
        "abcdef123456",
        "abc123abc123",
        "aaaaaaaaaaaa",
        "iloveyou1234",
        "iloveyouforever",
        "letmeinletmein",
        "letmein12345",
        "welcome12345",
        "welcome123456",
        "welcomewelcome",
        "administrator",
        "administrator1",
        "adminadmin12",
        "adminadminadmin",
        "admin1234567",
        "admin12345678",
        "correcthorsebatterystaple",
        "trustno1trustno1",
        "superman1234",
        "football1234",
        "baseball1234",
        "princess1234",
        "sunshine1234",
        "dragondragon",
        "monkeymonkey",
        "alignmentstudio",
        "alignment",
        "studio",
        "alignmentstudio1",
    ]
)


class WeakPassword(Invalid):
    """This password is too easy to guess."""


def check_strength(password: str, *about_the_person: str) -> None:
    """Raise :class:`WeakPassword` unless *password* is long, uncommon and not the person's own name or address."""
    lowered = password.lower()
    if len(password) < MIN_LENGTH:
        raise WeakPassword(
            f"A password has at least {MIN_LENGTH} characters.", remedy="Use four random words.", field="password"
        )
    if len(password) > MAX_LENGTH:
        raise WeakPassword(
            f"A password has at most {MAX_LENGTH} characters.", remedy="Use a shorter one.", field="password"
        )
    own = {part.lower() for part in about_the_person} | {part.split("@")[0].lower() for part in about_the_person}
    if lowered in _COMMON or lowered in own or len(set(lowered)) < 5:
        raise WeakPassword(
            "This password is one of the first that people try.", remedy="Use four random words.", field="password"
        )


def hash_password(password: str) -> str:
    """The argon2id hash to store; about 60 ms and 19 MiB."""
    with _at_once:
        return _hasher.hash(password)


def matches(stored: str | None, password: str) -> bool:
    """Whether *password* is the one behind *stored*; takes as long when there is none, so that timing tells nothing."""
    with _at_once:
        try:
            _hasher.verify(stored or _nobody, password[:MAX_LENGTH])
            return stored is not None
        except (VerificationError, InvalidHashError):
            return False


def needs_rehash(stored: str) -> bool:
    """Whether *stored* was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def digest(secret: str) -> str:
    """What the database keeps of a random secret: its SHA-256. A slow hash would add nothing to 128 random bits."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
