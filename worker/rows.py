"""From a dataset version's Parquet file to token ids: what is learned from, what is held out, what had to go.

Rows are tokenized here rather than in TRL, for three reasons. What a person wrote must not be able to end a turn: in
conversations, control tokens inside a message are broken with an invisible character before the chat template sees
them (plain text is taken as it stands; it may be somebody's own template). What is cut or dropped is counted and said.
And a row reaches the trainer as nothing but the ids it learns from. ``tests/worker/test_rows.py`` holds the result
against TRL's own tokenization.

The whole version is in memory as Arrow: about 4 bytes per token.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from backend.datasets.rows import COLUMNS, Row, RowType
from backend.runs.events import Note
from backend.runs.specs import Evaluation, Launch
from worker.report import SpecCannotWork

IGNORED = -100
"""Label of a token that does not count in the loss."""

_SPLIT_SEED = 0
"""The same for all runs, so that runs on one dataset version are evaluated on the same rows whatever their seed."""

_INVISIBLE = "\u200c"
"""Zero-width non-joiner: breaks a control token without changing what a person reads."""


# --- reading and splitting ---------------------------------------------------------------------------------------


def read(path: Path, row_type: RowType) -> Dataset:
    """The rows of a dataset version with TRL's columns of *row_type* and no others."""
    present = pq.read_schema(path).names
    columns = [name for name in COLUMNS[row_type] if name in present]
    if "prompt" in COLUMNS[row_type] and "prompt" not in present:
        raise SpecCannotWork("the rows have no prompt", remedy="Import them again with a prompt.", field="dataset")
    return Dataset(pq.read_table(path, columns=columns))


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
        prompt = _opening(row["messages"])
    if isinstance(prompt, str):
        return _unify(prompt)
    return json.dumps([[message["role"], _unify(message["content"])] for message in prompt], ensure_ascii=False)


def _unify(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _opening(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
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


# --- tokenizing --------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A prompt and what follows it, as token ids."""

    prompt: list[int]
    completion: list[int]


@dataclass
class Encoder:
    """Turns texts and conversations into token ids, and counts what it had to change."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    counts: Counter[str] = field(default_factory=Counter)
    """Rows by what happened to them: ``cut``, ``dropped``, ``identical``, ``broken`` (a control token)."""

    def __post_init__(self) -> None:
        specials = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        specials |= set(self.tokenizer.all_special_tokens)
        self._control = re.compile("|".join(re.escape(token) for token in sorted(specials, key=len, reverse=True)))

    def pairs(self, prompts: Sequence[Any], completions: Sequence[Any], *, check_end: bool = True) -> list[Pair]:
        """Each completion after its prompt, both plain or both conversations, ended by the end token.

        A completion begins where the tokens of prompt and of prompt + completion part, which is TRL's rule.
        *check_end*: raise :class:`SpecCannotWork` if the chat template would never end a turn.
        """
        if isinstance(prompts[0], str):
            end = self.tokenizer.eos_token
            ended = [text if text.endswith(end) else text + end for text in completions]
            openings, wholes = prompts, [prompt + text for prompt, text in zip(prompts, ended, strict=True)]
            special = True
        else:
            openings = [self.render(prompt, reply=True) for prompt in prompts]
            wholes = [self.render([*p, *c]) for p, c in zip(prompts, completions, strict=True)]
            special = False
        pairs = []
        for opening, whole in zip(self._ids(openings, special), self._ids(wholes, special), strict=True):
            start = _shared(opening, whole)
            pairs.append(Pair(whole[:start], whole[start:]))
        if check_end and not special and self.tokenizer.eos_token_id not in pairs[0].completion:
            raise SpecCannotWork(
                f"the chat template does not end a turn with the tokenizer's end token {self.tokenizer.eos_token!r}, "
                "so the model would never learn to stop",
                remedy="Set eos_token in tokenizer_config.json to the token that the template writes after a reply.",
                field="base_model",
            )
        return pairs

    def render(self, messages: Sequence[dict[str, str]], *, reply: bool = False) -> str:
        """A conversation as text; *reply*: opened for the assistant's answer. No message can end a turn."""
        safe = [{"role": message["role"], "content": self.defuse(message["content"])} for message in messages]
        if self.tokenizer.chat_template is None:
            raise SpecCannotWork(
                "the rows are conversations, and the model has no chat template",
                remedy="Use a model with a chat template, or rows of plain text.",
                field="base_model",
            )
        try:
            rendered = self.tokenizer.apply_chat_template(safe, tokenize=False, add_generation_prompt=reply)
        except Exception as error:  # a template is a program and fails in its own ways
            raise SpecCannotWork(
                f"a conversation does not fit the model's chat template: {error}",
                remedy="Use rows whose roles the template knows.",
                field="dataset",
            ) from error
        assert isinstance(rendered, str)
        return rendered

    def defuse(self, text: str) -> str:
        """*text* without control tokens: an invisible character after the first letter of each."""
        safe, found = self._control.subn(lambda match: match[0][:1] + _INVISIBLE + match[0][1:], text)
        self.counts["broken"] += found > 0
        return safe

    def replies(self, conversations: Sequence[Any]) -> list[tuple[list[int], list[int]]]:
        """Token ids of whole conversations, and labels in which only what the assistant says counts."""
        if not re.search(r"\{%-?\s*generation", self.tokenizer.chat_template or ""):
            raise SpecCannotWork(
                "the chat template does not mark what the assistant says ({% generation %})",
                remedy="Turn it off, use rows with prompt and completion, or a template with these markers.",
                field="completion_only",
            )
        safe = [[{**m, "content": self.defuse(m["content"])} for m in messages] for messages in conversations]
        try:
            encoded: Any = self.tokenizer.apply_chat_template(safe, return_dict=True, return_assistant_tokens_mask=True)
        except Exception as error:  # a template is a program and fails in its own ways
            raise SpecCannotWork(f"a conversation does not fit the chat template: {error}", field="dataset") from error
        return [
            (ids, [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)])
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        ]

    def texts(self, texts: Sequence[Any]) -> list[list[int]]:
        """Token ids of whole plain texts or conversations."""
        if isinstance(texts[0], str):
            end = self.tokenizer.eos_token
            return self._ids([text if text.endswith(end) else text + end for text in texts], special=True)
        return self._ids([self.render(messages) for messages in texts], special=False)

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=special)["input_ids"]
        return ids

    def note(self) -> list[Note]:
        """What was counted, in sentences for the run's log."""
        said = {
            "cut": "{} rows are longer than {} tokens; their end was cut.",
            "dropped": "{} rows were left out: within {} tokens nothing that counts in the loss is left.",
            "identical": "{} pairs were left out: chosen and rejected are the same.",
            "broken": "{} messages hold a control token of the model; an invisible character makes it plain text.",
        }
        return [
            Note(level="warning", text=text.format(self.counts[key], self.max_length))
            for key, text in said.items()
            if self.counts[key]
        ]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
        encoder.counts["cut"] += len(ids) > encoder.max_length
        ids, labels = ids[: encoder.max_length], labels[: encoder.max_length]
        if all(label == IGNORED for label in labels[1:]):  # the first token has nothing before it to be predicted from
            encoder.counts["dropped"] += 1
            continue
        columns["input_ids"].append(ids)
        columns["labels"].append(labels)
    return columns


def comparisons(encoder: Encoder, rows: list[Row]) -> Columns:
    """``prompt_ids``, ``chosen_ids`` and ``rejected_ids`` for methods that compare completions of one prompt."""
    columns: Columns = {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
    for _, chosen, rejected in _compared(encoder, rows):
        start = min(len(chosen.prompt), len(rejected.prompt))
        whole_chosen, whole_rejected = chosen.prompt + chosen.completion, rejected.prompt + rejected.completion
        columns["prompt_ids"].append(whole_chosen[:start])
        columns["chosen_ids"].append(whole_chosen[start:])
        columns["rejected_ids"].append(whole_rejected[start:])
    return columns


def scored_pairs(encoder: Encoder, rows: list[Row], *, use_margin: bool) -> Columns:
    """``chosen_ids`` and ``rejected_ids``, prompt included, and ``margin`` if asked for, for a reward model."""
    columns: Columns = {"chosen_ids": [], "rejected_ids": [], **({"margin": []} if use_margin else {})}
    if use_margin and "margin" not in rows[0]:
        raise SpecCannotWork(
            "the rows have no margin", remedy="Turn it off, or use a dataset with margins.", field="use_margin"
        )
    for row, chosen, rejected in _compared(encoder, rows):
        columns["chosen_ids"].append(chosen.prompt + chosen.completion)
        columns["rejected_ids"].append(rejected.prompt + rejected.completion)
        if use_margin:
            columns["margin"].append(row["margin"] or 0.0)
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
        encoder.counts["cut"] += cut
        good, bad = _cut(good, encoder.max_length), _cut(bad, encoder.max_length)
        if not good.completion or not bad.completion or good == bad:
            encoder.counts["dropped"] += 1
            continue
        yield row, good, bad


def _cut(pair: Pair, length: int) -> Pair:
    return Pair(pair.prompt[:length], pair.completion[: max(0, length - len(pair.prompt))])


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
    train, held_out = split_by_prompt(read(launch.rows, launch.row_type), spec.evaluation.held_out)
    held_out = held_out.select(range(min(len(held_out), spec.evaluation.max_rows)))
    learned, evaluated = (_encode(encoder, side, encode) for side in (train, held_out))
    for side, name in ((learned, "to learn from"), (evaluated, "held out")):
        if len(side) == 0:
            raise SpecCannotWork(
                f"no row {name} is left: {' '.join(note.text for note in encoder.note())}",
                remedy=f"Raise it above {spec.max_length}, or use other rows.",
                field="max_length",
            )
    notes = encoder.note()
    return Prepared(learned, evaluated, _prompts(encoder, held_out, spec.evaluation), list(held_out), notes)


def _encode(encoder: Encoder, dataset: Dataset, encode: Encode) -> Dataset:
    parts: list[pa.Table] = []
    rows = iter(dataset)
    while batch := list(islice(rows, 1000)):
        columns = encode(encoder, batch)
        parts.append(
            pa.table(
                {
                    name: pa.array(values, pa.float32() if name == "margin" else pa.list_(pa.int32()))
                    for name, values in columns.items()
                }
            )
        )
    return Dataset(pa.concat_tables(parts))


def _prompts(encoder: Encoder, held_out: Dataset, evaluation: Evaluation) -> list[Prompt]:
    """The first held-out prompts that leave room for a completion."""
    prompts: dict[str, Prompt] = {}
    for row in held_out:
        if len(prompts) >= evaluation.completions:
            break
        if "text" in row:
            break
        prompt: Any = row.get("prompt") or _opening(row.get("messages", []))
        if not prompt:
            continue
        plain = isinstance(prompt, str)
        ids = encoder._ids([prompt if plain else encoder.render(prompt, reply=True)], special=plain)[0]
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
