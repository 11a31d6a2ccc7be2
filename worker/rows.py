"""From rows to token ids, learned from and held out alike (:mod:`worker.splitting`), and what had to go.

Rows are tokenized here rather than in TRL, for three reasons. What a person wrote must not be able to end a turn
(:mod:`worker.encoding`). What is cut or dropped is counted and said. And a row reaches the trainer as nothing but the ids
it learns from. ``tests/worker/test_rows.py`` holds the result against TRL's own tokenization.

All token ids are in memory as Arrow: about 4 bytes each.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from backend.datasets.rows import Row
from backend.runs.events import Note
from backend.runs.specs import HeldOut, Launch, OnlineSpec
from worker.encoding import Encoder as Encoder
from worker.encoding import Pair as Pair
from worker.objectives import IGNORED
from worker.report import SpecCannotWork
from worker.splitting import canonical_prompt, decoded, json_columns, opening, read, split_by_prompt

# --- one function per shape of training row ----------------------------------------------------------------------

Columns = dict[str, list[Any]]
Encode = Callable[[Encoder, list[Row]], Columns]


def demonstrations(encoder: Encoder, rows: list[Row], *, completion_only: bool) -> Columns:
    """``input_ids`` and ``labels`` (T) for supervised fine-tuning."""
    encoded: list[tuple[list[int], list[int]]]
    if "prompt" in rows[0]:
        pairs = encoder.pairs([row["prompt"] for row in rows], [row["completion"] for row in rows])
        encoded = [(p + c, ([IGNORED] * len(p) if completion_only else p) + c) for p, c in pairs]
    elif completion_only and "messages" in rows[0]:
        encoded = encoder.replies([row["messages"] for row in rows])
    else:
        encoded = [(ids, ids) for ids in encoder.texts([row.get("messages", row.get("text")) for row in rows])]
    columns: Columns = {"input_ids": [], "labels": []}
    for ids, labels in encoded:
        cut = len(ids) > encoder.max_length
        ids, labels = ids[: encoder.max_length], labels[: encoder.max_length]
        if all(label == IGNORED for label in labels[1:]):  # the first token has nothing before it to be predicted from
            encoder.counts["dropped"] += 1
            continue
        encoder.counts["cut"] += cut
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    return columns


def comparisons(encoder: Encoder, rows: list[Row], *, use_probability: bool = False) -> Columns:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` for methods that compare completions of one prompt.

    With *use_probability* also ``probability``, 1 for a row that has none; without it as in :func:`_decided`.
    """
    columns: Columns = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    if use_probability:
        check_probability(rows)
        columns["probability"] = []
    for row, chosen, rejected in (_compared if use_probability else _decided)(encoder, rows):
        if use_probability:
            columns["probability"].append(1.0 if row["probability"] is None else row["probability"])
        start = min(len(chosen.prompt), len(rejected.prompt))
        whole_chosen, whole_rejected = chosen.prompt + chosen.completion, rejected.prompt + rejected.completion
        columns["prompt_ids"].append(whole_chosen[:start])
        columns["chosen_ids"].append(whole_chosen[start:])
        columns["rejected_ids"].append(whole_rejected[start:])
    return columns


def scored_pairs(
    encoder: Encoder, rows: list[Row], *, use_margin: bool = False, use_probability: bool = False
) -> Columns:
    """What a reward model learns from: ``chosen_ids``, ``rejected_ids``, both with the prompt, ``prompt_tokens``.

    And ``margin`` and ``probability`` if asked for; a row without one has margin 0 and is certain. Without probabilities
    a tie (0.5) is left out, and what is chosen by fewer than half changes sides.
    """
    columns: Columns = {"chosen_ids": [], "rejected_ids": [], "prompt_tokens": []}
    if use_margin and "margin" not in rows[0]:
        raise SpecCannotWork(
            "the rows have no margin", remedy="Turn it off, or use a dataset with margins.", field="use_margin"
        )
    if use_probability:
        check_probability(rows)
    columns |= {name: [] for name, asked in (("margin", use_margin), ("probability", use_probability)) if asked}
    for row, chosen, rejected in _compared(encoder, rows):
        known = row.get("probability")
        probability = 1.0 if known is None else known
        if not use_probability:
            if probability == 0.5:
                encoder.counts["ties"] += 1
                continue
            if probability < 0.5:
                encoder.counts["turned"] += 1
                chosen, rejected = rejected, chosen
        columns["chosen_ids"].append(chosen.prompt + chosen.completion)
        columns["rejected_ids"].append(rejected.prompt + rejected.completion)
        columns["prompt_tokens"].append(min(len(chosen.prompt), len(rejected.prompt)))
        if use_margin:
            columns["margin"].append(row["margin"] or 0.0)
        if use_probability:
            columns["probability"].append(probability)
    return columns


def _compared(encoder: Encoder, rows: list[Row]) -> Iterator[tuple[Row, Pair, Pair]]:
    """Pairs cut to the longest length, without those from which nothing can be learned."""
    prompts = [row["prompt"] for row in rows]
    chosen = encoder.pairs(prompts, [row["chosen"] for row in rows])
    rejected = encoder.pairs(prompts, [row["rejected"] for row in rows])
    for row, good, bad in zip(rows, chosen, rejected, strict=True):
        if good == bad:
            encoder.counts["identical"] += 1
            continue
        room = encoder.max_length - min(len(good.prompt), len(bad.prompt))
        cut = max(len(good.completion), len(bad.completion)) > room
        good, bad = _cut(good, encoder.max_length), _cut(bad, encoder.max_length)
        if not good.completion or not bad.completion or good == bad:
            encoder.counts["dropped"] += 1
            continue
        encoder.counts["cut"] += cut
        yield row, good, bad


def _cut(pair: Pair, length: int) -> Pair:
    return Pair(pair.prompt[:length], pair.completion[: max(0, length - len(pair.prompt))])


def check_probability(rows: list[Row]) -> None:
    """Raises :class:`SpecCannotWork` unless the rows have probabilities from 0 to 1."""
    if "probability" not in rows[0]:
        raise SpecCannotWork(
            "the rows have no probability",
            remedy="Turn it off, or use rows with a probability: what several annotators said, frozen, has one.",
            field="use_probability",
        )
    for row in rows:
        if row["probability"] is not None and not 0 <= row["probability"] <= 1:
            raise SpecCannotWork(
                f"a row's probability is {row['probability']}", remedy="Import numbers from 0 to 1.", field="dataset"
            )


def _decided(encoder: Encoder, rows: list[Row]) -> Iterator[tuple[Row, Pair, Pair]]:
    """Pairs for a method that knows no probability: a tie (0.5) is left out, and below it the two change sides."""
    for row, chosen, rejected in _compared(encoder, rows):
        probability = row.get("probability")
        if probability == 0.5:
            encoder.counts["ties"] += 1
        elif probability is not None and probability < 0.5:
            encoder.counts["turned"] += 1
            yield row, rejected, chosen
        else:
            yield row, chosen, rejected


def thumbs(encoder: Encoder, rows: list[Row]) -> Columns:
    """``prompt_ids``, ``completion_ids`` and ``label``: thumbs as they are, or each pair as one up and one down."""
    columns: Columns = {"prompt_ids": [], "completion_ids": [], "label": []}
    for pair, label in _split_pairs(encoder, rows) if "chosen" in rows[0] else _labeled(encoder, rows):
        columns["prompt_ids"].append(pair.prompt)
        columns["completion_ids"].append(pair.completion)
        columns["label"].append(label)
    return columns


def _split_pairs(encoder: Encoder, rows: list[Row]) -> Iterator[tuple[Pair, bool]]:
    for _, chosen, rejected in _decided(encoder, rows):
        yield chosen, True
        yield rejected, False


def _labeled(encoder: Encoder, rows: list[Row]) -> Iterator[tuple[Pair, bool]]:
    pairs = encoder.pairs([row["prompt"] for row in rows], [row["completion"] for row in rows])
    for row, pair in zip(rows, pairs, strict=True):
        if row["label"] is None:  # it would silently count as a thumb down
            raise SpecCannotWork("a row has no label", remedy="Import the rows again with labels.", field="dataset")
        cut = len(pair.prompt) + len(pair.completion) > encoder.max_length
        pair = _cut(pair, encoder.max_length)
        if not pair.completion:
            encoder.counts["dropped"] += 1
            continue
        encoder.counts["cut"] += cut
        yield pair, row["label"]


# --- all of it ---------------------------------------------------------------------------------------------------


class Prompt(NamedTuple):
    """A held-out prompt to be completed."""

    text: str
    """As people read it."""
    ids: list[int]
    """As the model reads it."""


@dataclass(frozen=True)
class Prepared:
    """What a recipe trains on."""

    train: Dataset
    """Tokenized rows to learn from."""
    held_out: Dataset
    """Tokenized rows only evaluated on."""
    prompts: list[Prompt]
    """Held-out prompts to complete, always the same ones; none if rows have no prompt."""
    examples: list[Row]
    """Held-out rows as they were imported, in the order of *held_out* before anything was dropped."""
    notes: list[Note]
    """What had to be changed or left out."""


def prepare(launch: Launch, tokenizer: PreTrainedTokenizerBase, encode: Encode) -> Prepared:
    """Read, split and tokenize the rows of *launch*. Raises :class:`SpecCannotWork` if one side ends up empty."""
    spec = launch.spec
    encoder = Encoder(tokenizer, spec.max_length)
    data = read(launch.rows, launch.row_type, spec.columns())
    as_json = [name for name in json_columns(launch.rows) if name in data.column_names]
    train, held_out = split_by_prompt(data, spec.evaluation.held_out)
    held_out = held_out.select(range(min(len(held_out), spec.evaluation.max_rows)))
    learned, evaluated = (_encode(encoder, side, encode, as_json) for side in (train, held_out))
    for side, name in ((learned, "to learn from"), (evaluated, "held out")):
        if len(side) == 0:
            raise SpecCannotWork(
                f"no row {name} is left: {' '.join(note.text for note in encoder.note())}",
                remedy=f"Raise it above {spec.max_length}, or use other rows.",
                field="max_length",
            )
    examples = [decoded(row, as_json) for row in held_out]
    return Prepared(learned, evaluated, _prompts(encoder, held_out, spec.evaluation), examples, encoder.note())


def prompts(launch: Launch, tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, str]) -> Prepared:
    """What a method needs that samples: ``prompt_ids``, ``prompt`` (as it was imported), and *columns*.

    Any rows with prompts will do; of rows that differ only in their other columns one is kept. A prompt is cut on the
    left to leave room for the longest completion: what is asked comes last. *columns*: column → the spec's field that
    asks for it (``spec.columns()``). A value that is neither text nor a number arrives as JSON text, a missing one as
    ``None``. Raises :class:`SpecCannotWork` if there is no room, no prompt, or one side is empty.
    """
    spec = launch.spec
    assert isinstance(spec, OnlineSpec)
    room = spec.max_length - spec.sampling.max_new_tokens
    if room < 1:
        raise SpecCannotWork(
            f"completions of {spec.sampling.max_new_tokens} tokens leave no room for a prompt in {spec.max_length}",
            remedy="Lower it, or raise max_length.",
            field="sampling.max_new_tokens",
        )
    encoder = Encoder(tokenizer, room)
    train, held_out = split_by_prompt(_asked(launch, columns), spec.evaluation.held_out)
    held_out = held_out.select(range(min(len(held_out), spec.evaluation.max_rows)))
    learned, evaluated = (_with_prompt_ids(encoder, side) for side in (train, held_out))
    for side, name in ((learned, "to learn from"), (evaluated, "held out")):
        if len(side) == 0:
            raise SpecCannotWork(f"no prompt {name} has a token", remedy="Use other rows.", field="dataset")
    shown: dict[str, Prompt] = {}
    for row in evaluated:
        if len(shown) < spec.evaluation.completions:
            shown.setdefault(canonical_prompt(row), Prompt(readable(row["prompt"]), row["prompt_ids"]))
    return Prepared(learned, evaluated, list(shown.values()), list(evaluated), encoder.note())


def _asked(launch: Launch, columns: Mapping[str, str]) -> Dataset:
    """Distinct rows of ``prompt`` and *columns*."""
    data = read(launch.rows, launch.row_type, columns)
    if "text" in data.column_names:
        raise SpecCannotWork(
            "rows of plain text have no prompt to complete", remedy="Use rows with prompts.", field="dataset"
        )
    as_json = [name for name in json_columns(launch.rows) if name in columns]
    distinct: dict[str, Row] = {}
    for row in data:
        prompt = row["prompt"] if "prompt" in row else opening(row["messages"])
        kept: Row = {"prompt": prompt} | {name: row[name] for name in columns if name != "prompt"}
        for name in as_json:  # values of several types: plain ones as they read, the others as JSON text
            plain = json.loads(kept[name]) if kept[name] is not None else None
            kept[name] = str(plain) if isinstance(plain, str | int | float) else kept[name]
        distinct.setdefault(json.dumps(kept, sort_keys=True, ensure_ascii=False, default=str), kept)
    return Dataset.from_list(list(distinct.values()))


def _with_prompt_ids(encoder: Encoder, rows: Dataset) -> Dataset:
    ids = []
    for row in rows:
        plain = isinstance(row["prompt"], str)
        text = row["prompt"] if plain else encoder.render(row["prompt"], reply=True)
        tokens = encoder.ids([text], special=plain)[0]
        encoder.counts["cut_left"] += len(tokens) > encoder.max_length
        encoder.counts["empty"] += not tokens
        ids.append(tokens[-encoder.max_length :])
    rows = rows.add_column("prompt_ids", pa.array(ids, pa.list_(pa.int32())))
    return rows.select([index for index, tokens in enumerate(ids) if tokens])


def _encode(encoder: Encoder, dataset: Dataset, encode: Encode, as_json: Sequence[str]) -> Dataset:
    parts: list[pa.Table] = []
    rows = iter(dataset)
    while batch := list(islice(rows, 1000)):
        columns = encode(encoder, [decoded(row, as_json) for row in batch])
        parts.append(pa.table({name: _packed(values) for name, values in columns.items()}))
    return Dataset(pa.concat_tables(parts, promote_options="default"))  # a batch that was dropped whole has no types


def _packed(values: list[Any]) -> pa.Array:
    """*values* at half the width: token ids and numbers need no 64 bits."""
    array = pa.array(values)
    narrow = {pa.list_(pa.int64()): pa.list_(pa.int32()), pa.float64(): pa.float32()}
    return array.cast(narrow.get(array.type, array.type))


def _prompts(encoder: Encoder, held_out: Dataset, evaluation: HeldOut) -> list[Prompt]:
    """The first held-out prompts that leave room for a completion."""
    prompts: dict[str, Prompt] = {}
    for row in held_out:
        if len(prompts) >= evaluation.completions:
            break
        if "text" in row:
            break
        prompt: Any = row.get("prompt") or opening(row.get("messages", []))
        if not prompt:
            continue
        plain = isinstance(prompt, str)
        ids = encoder.ids([prompt if plain else encoder.render(prompt, reply=True)], special=plain)[0]
        if len(ids) < encoder.max_length:
            prompts.setdefault(canonical_prompt(row), Prompt(readable(prompt), ids))
    return list(prompts.values())


def readable(text: str | Sequence[dict[str, str]]) -> str:
    """A prompt or completion as people read it; a single message without its role."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return text[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in text)
