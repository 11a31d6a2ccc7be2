"""What a metric's name means, with and without the ``eval_`` of held-out rows. The words are in ``measures``."""

from dataclasses import replace

from backend.runs.measures import MEANINGS, PATTERNS, Better, Meaning

__all__ = ["Better", "Meaning", "bare", "is_held_out", "is_known", "meaning"]


def bare(key: str) -> str:
    """The metric without the ``eval_`` of held-out rows."""
    return key.removeprefix("eval_")


def meaning(key: str) -> Meaning:
    """What *key* means; an unknown one keeps its own name."""
    name = bare(key)
    if known := MEANINGS.get(name):
        return known
    for pattern, known in PATTERNS:
        if found := pattern.fullmatch(name):
            return replace(known, name=known.name.format(**found.groupdict()))
    return Meaning(name, "The recipe logs this value under its own name; the studio knows no more about it.")


def is_known(key: str) -> bool:
    """Whether the studio can explain *key*."""
    name = bare(key)
    return name in MEANINGS or any(pattern.fullmatch(name) for pattern, _ in PATTERNS)


def is_held_out(key: str) -> bool:
    """Whether the value was measured on held-out rows."""
    return key.startswith("eval_")
