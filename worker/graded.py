"""Rows that carry grades, as token ids: completions with scores of attributes, and solutions with a label for each step."""

import hashlib
import math
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from backend.datasets.rows import Row
from worker.encoding import Encoder
from worker.objectives import IGNORED
from worker.rows import Columns
from worker.splitting import canonical_prompt


def attribute_scores(encoder: Encoder, rows: list[Row], *, attributes: Sequence[str]) -> Columns:
    """``input_ids``, ``scores`` (K; not a number where the row says nothing), ``prompt_tokens``, ``prompt_key``."""
    pairs = encoder.pairs([row["prompt"] for row in rows], [row["completion"] for row in rows])
    columns: Columns = {"input_ids": [], "prompt_tokens": [], "scores": [], "prompt_key": []}
    for row, pair in zip(rows, pairs, strict=True):
        known = row["scores"] or {}
        scores = [math.nan if (score := known.get(name)) is None else float(score) for name in attributes]
        if all(map(math.isnan, scores)):
            encoder.counts["unscored"] += 1
            continue
        whole = pair.prompt + pair.completion
        ids = whole[: encoder.max_length]
        if len(ids) <= len(pair.prompt):
            encoder.counts["dropped"] += 1
            continue
        encoder.counts["cut"] += len(ids) < len(whole)
        columns["input_ids"].append(ids)
        columns["prompt_tokens"].append(len(pair.prompt))
        columns["scores"].append(scores)
        columns["prompt_key"].append(_key(row))
    return columns


def _key(row: Row) -> int:
    """A number by which rows of one prompt find each other."""
    return int.from_bytes(hashlib.blake2b(canonical_prompt(row).encode(), digest_size=7).digest(), "big")


def solutions(encoder: Encoder, rows: list[Row], *, separator: str, first_error_only: bool) -> Columns:
    """``input_ids``, ``ends`` (S: the last token of each step), ``labels`` (S: 1 right, 0 wrong) for a process reward model.

    Steps are what a reader takes for one, who knows the separator only (:func:`steps_read`). A label that does not count is
    ``IGNORED``: with *first_error_only* that of each step after the first wrong one.
    ``right``: whether the solution is right, as far as its reader can know: 0 if a step that is read is wrong, 1 if none is and
    nothing was cut off. ``IGNORED`` if the end was cut off before any wrong step: what decides is not there to be read, whether
    the rest is wrong (a verdict "right" would be punished for what nobody saw) or right (it would be rewarded for it).
    """
    columns: Columns = {"input_ids": [], "prompt_tokens": [], "ends": [], "labels": [], "right": []}
    for row, prompt in zip(rows, encoder.openings([row["prompt"] for row in rows]), strict=True):
        plain = isinstance(row["prompt"], str)
        given = [step if plain else encoder.defuse(step) for step in row["completions"]]
        steps, told = steps_read(given, row["labels"], separator)
        ids, ends = join_steps(encoder.tokenizer, prompt, steps, separator)
        wrong = next((n for n, label in enumerate(told) if label == 0), len(told))
        labels = [IGNORED if first_error_only and n > wrong else label for n, label in enumerate(told)]
        kept = sum(end < encoder.max_length for end in ends)
        if all(label == IGNORED for label in labels[:kept]):
            encoder.counts["dropped"] += 1
            continue
        encoder.counts["parted"] += any(len(steps_of(step, separator)) > 1 for step in given)
        encoder.counts["cut"] += kept < len(ends)
        undecided = kept < len(told) and wrong >= kept
        encoder.counts["undecided"] += undecided
        columns["input_ids"].append(ids[: ends[kept - 1] + 1])
        columns["prompt_tokens"].append(len(prompt))
        columns["ends"].append(ends[:kept])
        columns["labels"].append(labels[:kept])
        columns["right"].append(IGNORED if undecided else int(wrong == len(told)))
    return columns


def steps_of(text: str, separator: str) -> list[str]:
    """The steps that a reader of *text* sees, without the separator; what is blank is none."""
    return [step for step in text.split(separator) if step.strip()]


def steps_read(steps: list[str], right: list[bool], separator: str) -> tuple[list[str], list[int]]:
    """*steps* as they are found in the joined text, and their labels: 1 right, 0 wrong.

    A step that holds the separator is several to a reader. All of a right one are right. Of a wrong one the last is wrong,
    as the error is made by then; of those before nobody has said it: ``IGNORED``.
    """
    found: list[str] = []
    labels: list[int] = []
    for step, good in zip(steps, right, strict=True):
        if parts := steps_of(step, separator):
            found += parts
            labels += [1 if good else IGNORED] * (len(parts) - 1) + [int(good)]
    return found, labels


def join_steps(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], steps: Sequence[str], separator: str
) -> tuple[list[int], list[int]]:
    """Token ids of *prompt* and *steps*, each ended by *separator*, and the place of each step's last token.

    Step by step, so that no token reaches across a step's end.
    """
    ids, ends = list(prompt), []
    texts = [step + separator for step in steps]
    for step in tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []:
        ids += step
        ends.append(len(ids) - 1)
    return ids, ends
