"""The only way out of a recipe: events as JSON lines, and the callback that turns the trainer's log into them.

One event is one line and one ``write``; the line's number is its sequence number, so nothing already written is ever
changed. No torch here: a spec that cannot work is reported before the heavy imports.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from pydantic import BaseModel

from backend.runs.events import Checkpoint, Failed, Finished, Metrics, encode

_DURABLE = (Checkpoint, Failed, Finished)
"""After these somebody may act on what the file says, so they are on the disk before the recipe goes on."""

_UNSAID = frozenset(
    {"epoch", "total_flos", "eval_num_tokens", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
)
"""What the trainer logs about itself; the studio derives rate and time left from the steps."""


class SpecCannotWork(Exception):
    """The run would fail again however often it were tried: exit code 78."""

    def __init__(self, reason: str, *, remedy: str | None = None, field: str | None = None) -> None:
        """*field* is the spec's field at fault, such as ``max_length``."""
        self.reason = reason if field is None else f"{field}: {reason}"
        super().__init__(self.reason)
        self.remedy = remedy

    def event(self, trace: str = "") -> Failed:
        """The event that says so."""
        return Failed(reason=self.reason, remedy=self.remedy, trace=trace)


class StopRequested(BaseException):
    """Somebody asked the recipe to stop, and there is nothing yet that is worth saving."""


class Stop:
    """Whether somebody asked the recipe to stop.

    Until ``saving`` is entered nothing is worth saving, and the signal breaks off whatever goes on (loading a large
    model takes minutes). From then on it is a flag, which the frame polls after every step and the sampler after every
    token.
    """

    def __init__(self) -> None:
        self.requested = False
        self._saves = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self.requested = True
        if not self._saves:
            raise StopRequested

    def save_first(self) -> None:
        """From here on there is a state to save. Raises :class:`StopRequested` if it is too late."""
        self._saves = True
        if self.requested:
            raise StopRequested


class Report:
    """Writes events to a file, whole lines only.

    A half line that a killed attempt left at the end of the same file is removed first: nobody has counted it yet.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut_half_line()

    def _cut_half_line(self) -> None:
        end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - 65536)
            found = os.pread(self._file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        os.ftruncate(self._file, end)

    def say(self, event: BaseModel) -> None:
        """Append *event*. Raises ``OSError`` if the disk is full: better to stop than to train unseen."""
        line = event.model_dump_json().encode() + b"\n"
        written = os.write(self._file, line)
        while written < len(line):  # a signal or a nearly full disk may cut a write short
            written += os.write(self._file, line[written:])
        if isinstance(event, _DURABLE):
            os.fsync(self._file)

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Numbers the trainer logged after *step*, under its own names; what is not a number is left out."""
        numbers = {
            key: encode(float(value))
            for key, value in values.items()
            if isinstance(value, int | float) and key not in _UNSAID and not key.startswith("train_")
        }
        for prefix in ("", "eval_"):
            # Accuracy counts strict wins. Before the first update the policy is its reference: no win and a mean margin of
            # exactly 0 say that every pair is a tie, which is a coin (0.5), not a policy that is always wrong (0).
            if numbers.get(f"{prefix}rewards/accuracies") == 0 == numbers.get(f"{prefix}rewards/margins"):
                numbers[f"{prefix}rewards/accuracies"] = 0.5
        if numbers:
            self.say(Metrics(step=step, values=numbers))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Silence(Report):
    """What the other processes of a run say: nothing."""

    def __init__(self) -> None:
        """No file."""

    def say(self, event: BaseModel) -> None:
        """Not a word."""

    def close(self) -> None:
        """Nothing is open."""
