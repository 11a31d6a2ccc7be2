"""The states of a run and the only function that moves it between them; a trigger in the database refuses the same moves.

Leased are ``starting``, ``running`` and ``cancelling``; terminal are ``succeeded``, ``failed`` and ``cancelled``, which
never change again: a rerun is a new run with a parent. From a leased state a run returns to ``queued`` when its worker is
lost, drained, or failed in a way that another attempt may not.
"""

from typing import Literal, Protocol

from backend.errors import Conflict

State = Literal["queued", "starting", "running", "cancelling", "succeeded", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "starting", "running", "cancelling", "succeeded", "failed", "cancelled")
LEASED: frozenset[State] = frozenset({"starting", "running", "cancelling"})
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled"})

MOVES: dict[State, frozenset[State]] = {
    "queued": frozenset({"starting", "cancelled"}),
    "starting": frozenset({"running", "queued", "cancelling", "failed", "cancelled"}),
    "running": frozenset({"queued", "cancelling", "succeeded", "failed", "cancelled"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}


class IllegalMove(Conflict):
    """A run cannot go from this state to that one."""


class HasState(Protocol):
    """Anything with a state; in practice a row of ``run``."""

    state: str


def move(run: HasState, to: State) -> None:
    """Set *run*'s state to *to*. Raises :class:`IllegalMove`; nothing else in the studio writes a run's state."""
    if to not in MOVES[run.state]:  # type: ignore[index]
        raise IllegalMove(f"A run that is {run.state} cannot become {to}.", state=run.state)
    run.state = to
