"""A dataset version's Parquet file as rows, and which of them are only looked at.

The whole version is in memory as Arrow.
"""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from datasets import Dataset

from backend.datasets.rows import COLUMNS, Row, RowType
from worker.report import SpecCannotWork

_SPLIT_SEED = 0
"""The same for all runs, so that runs on one dataset version are evaluated on the same rows whatever their seed."""


def read(path: Path, row_type: RowType, extra: Mapping[str, str] | None = None) -> Dataset:
    """The rows of a dataset version with TRL's columns of *row_type*, and *extra* ones.

    *extra*: column → the spec's field that asks for it. Raises :class:`SpecCannotWork` about that field if the column
    is not there. What the file keeps as JSON text (``scores``, lists, objects) stays text here.
    """
    present = pq.read_schema(path).names
    columns = [name for name in COLUMNS[row_type] if name in present]
    if "prompt" in COLUMNS[row_type] and "prompt" not in present:
        raise SpecCannotWork("the rows have no prompt", remedy="Import them again with a prompt.", field="dataset")
    for name, asks in (extra or {}).items():
        if name not in present:
            others = sorted(set(present) - set(COLUMNS[row_type]))
            has = f"they have {', '.join(others)}" if others else "they have none besides those of their type"
            raise SpecCannotWork(
                f"the rows have no column {name!r}; {has}",
                remedy="Name a column of the rows, or use a dataset with this one.",
                field=asks,
            )
        if name not in columns:
            columns.append(name)
    return Dataset(pq.read_table(path, columns=columns))


def json_columns(path: Path) -> list[str]:
    """Columns that a version keeps as JSON text."""
    return [field.name for field in pq.read_schema(path) if (field.metadata or {}).get(b"kind") == b"json"]


def decoded(row: Row, as_json: Sequence[str]) -> Row:
    """*row* with what it keeps as JSON text, in the columns *as_json*, as it was."""
    return row | {name: json.loads(row[name]) for name in as_json if row.get(name) is not None}


# --- what is held out --------------------------------------------------------------------------------------------


class Split(NamedTuple):
    """Rows to learn from and rows only to look at."""

    train: Dataset
    held_out: Dataset


def canonical_prompt(row: Row) -> str:
    """What decides the side of a row: its prompt, without differences that nobody sees.

    In ``messages`` everything before the first reply; plain ``text`` is its own prompt.
    """
    prompt = row.get("prompt", row.get("text"))
    if prompt is None:
        prompt = opening(row["messages"])
    if isinstance(prompt, str):
        return _unify(prompt)
    return json.dumps([[message["role"], _unify(message["content"])] for message in prompt], ensure_ascii=False)


def _unify(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def opening(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What stands before the first reply."""
    first_reply = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:first_reply])


def _draw(prompt: str, seed: int) -> float:
    """A number in [0, 1) that only *prompt* and *seed* decide."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_by_prompt(dataset: Dataset, held_out: float, seed: int = _SPLIT_SEED) -> Split:
    """All rows of a prompt on one side, drawn by a hash, so that neither order nor growth moves a row across.

    Both sides get at least one prompt. The held-out rows come in the order of the draw. Raises
    :class:`SpecCannotWork` if there is only one prompt.
    """
    draws = [_draw(canonical_prompt(row), seed) for row in dataset]
    distinct = sorted(set(draws))
    if len(distinct) < 2:
        raise SpecCannotWork(
            f"the dataset has {len(distinct)} different prompts, and holding one out leaves none to learn from",
            remedy="Use a dataset with at least two prompts.",
            field="dataset",
        )
    limit = min(max(held_out, distinct[1]), distinct[-1])  # below it: at least the first, at most all but the last
    train = [i for i, draw in enumerate(draws) if draw >= limit]
    kept = sorted((i for i, draw in enumerate(draws) if draw < limit), key=lambda i: (draws[i], str(dataset[i])))
    return Split(dataset.select(train), dataset.select(kept))
