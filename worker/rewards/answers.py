"""Where the answer is in a completion, and whether it is exactly the row's text or its number."""

import re
from collections.abc import Callable, Sequence

from backend.runs.specs.rewards import Answer, ExactAnswer, NumericAnswer
from worker.rewards import quantities
from worker.rewards.quantities import Quantity
from worker.rewards.rollouts import Rollout, Row, Score, Scorer, refuse

_MARKER = re.compile(r"####|\banswer\b(?:\s+is\b)?|^[ \t]*A(?=:)", re.IGNORECASE | re.MULTILINE)
_SENTENCE = re.compile(r"[.!?](?=\s|\**\s*$)|\n")
_BRACES = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)


# --- where it is -------------------------------------------------------------------------------------------------


def locate(text: str, where: Answer) -> str | None:
    """The answer in *text*, ``None`` if there is none: no tag, no box, no number, nothing but spaces."""
    found = _PLACES[where](text)
    return None if found is None else found.strip() or None


def _answer_tag(text: str) -> str | None:
    """Inside the last ``<answer>…</answer>``; an opened tag that is never closed holds no answer."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if end < 0 or start < 0 else text[start + len("<answer>") : end]


def _boxed(text: str) -> str | None:
    r"""Inside the last ``\boxed{…}`` that is closed; escaped braces (``\{``) are not braces."""
    open_boxes: list[int | None] = []  # of every open brace: where the box's content begins, None if it is no box
    last = (-1, -1)
    for token in _BRACES.finditer(text):
        if token[0] == "}":
            start = open_boxes.pop() if open_boxes else None
            if start is not None and start > last[0]:
                last = (start, token.start())
        elif token[0].endswith("{") and token[0] != r"\{":
            open_boxes.append(None if token[0] == "{" else token.end())
    return text[slice(*last)] if last[0] >= 0 else None


def _last_line(text: str) -> str | None:
    return next((line for line in reversed(text.splitlines()) if line.strip()), None)


def _after_marker(text: str) -> str | None:
    """From the last ``####``, *answer* (*is*) or ``A:`` to the end of the sentence or line."""
    markers = list(_MARKER.finditer(text))
    if not markers:
        return None
    rest = re.sub(r"^[\s:=*]+", "", text[markers[-1].end() :])
    return _SENTENCE.split(rest, maxsplit=1)[0].rstrip("* ")


_PLACES: dict[Answer, Callable[[str], str | None]] = {
    "whole": lambda text: text,
    "answer_tag": _answer_tag,
    "boxed": _boxed,
    "last_line": _last_line,
    "last_number": quantities.last_written,
    "after_marker": _after_marker,
}


# --- whether it is right -----------------------------------------------------------------------------------------


class Exact(Scorer):
    """1 if the answer is the row's text, 0 if it is another or there is none."""

    def __init__(self, spec: ExactAnswer) -> None:
        self.spec = spec

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Every row has an answer."""
        refuse(
            rows,
            {i: "it is empty" for i, row in enumerate(rows) if self._gold(row) is None},
            what=f"have no answer in {self.spec.column!r}",
            remedy="Name the column with the answers, or use rows that have one.",
            field=f"{field}.column",
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> Score:
        gold = self._gold(rollout.row)
        if gold is None:
            return None
        found = locate(rollout.completion, self.spec.answer)
        return float(found is not None and self._same(found) == self._same(gold))

    def _gold(self, row: Row) -> str | None:
        content = row.get(self.spec.column)
        return None if content is None else str(content).strip() or None

    def _same(self, text: str) -> str:
        return text.casefold() if self.spec.ignore_case else text


class Number(Scorer):
    """1 if the answer is the row's number, 0 if it is another or there is none."""

    def __init__(self, spec: NumericAnswer) -> None:
        self.spec = spec

    def check(self, rows: Sequence[Row], field: str) -> None:
        """Every row has a number."""
        refuse(
            rows,
            {i: repr(row.get(self.spec.column)) for i, row in enumerate(rows) if self._gold(row) is None},
            what=f"have no number in {self.spec.column!r}",
            remedy="Name the column with the numbers, or leave the rows without one out of the dataset.",
            field=f"{field}.column",
        )

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """Each by itself."""
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> Score:
        gold = self._gold(rollout.row)
        if gold is None:
            return None
        answer = locate(rollout.completion, self.spec.answer)
        found = None if answer is None else quantities.read(answer)
        return float(found is not None and quantities.equal(gold, found, self.spec.tolerance))

    def _gold(self, row: Row) -> Quantity | None:
        content = row.get(self.spec.column)
        return None if content is None or isinstance(content, bool) else quantities.read(str(content))
