"""Every way the studio says no.

A part subclasses one of the seven kinds beside its service: the class name is the problem's ``type``, the first
line of the docstring its title, the attributes its fields. No HTTP here: ``web/problems.py`` maps kinds to statuses.
"""

from typing import Any


class StudioError(Exception):
    """Something the studio cannot do."""

    def __init__(self, detail: str, *, remedy: str | None = None, **fields: Any) -> None:
        """*detail* says what happened, *remedy* what to do; *fields* (``line=3``, ``field="beta"``) travel to the client."""
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:  # errors cross process borders with their fields
        return (_rebuild, (type(self), self.detail, self.remedy, self.fields))


def _rebuild(kind: type[StudioError], detail: str, remedy: str | None, fields: dict[str, Any]) -> StudioError:
    return kind(detail, remedy=remedy, **fields)


class NotFound(StudioError):
    """There is no such thing here, or it is not yours to see."""


class Invalid(StudioError):
    """What was sent does not make sense."""


class Conflict(StudioError):
    """It made sense, but not in the present state."""


class Forbidden(StudioError):
    """You are known, but may not do this."""


class Unauthenticated(StudioError):
    """Sign in first."""


class TooLarge(StudioError):
    """More than the studio takes at once."""


class TooMany(StudioError):
    """Too often; wait a little."""


class Unavailable(StudioError):
    """Something the studio stands on does not answer."""
