"""Whether model, tokenizer and rows fit, asked before a run queues: it costs milliseconds here and a worker's start there.

Every refusal is certain: what the files do not say is left to the worker, which loads the model and asks again.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rowfile import RowReader
from backend.datasets.rows import Row
from backend.datasets.statistics import text_of
from backend.datasets.tables import DatasetVersion
from backend.registry import service as registry
from backend.registry.tables import Model
from backend.registry.tokenizing import Tokenizing, tokenizing_of
from backend.runs.specs import AnySpec, OnlineSpec, SFTSpec

Refusal = tuple[str, str, str]
"""What is wrong, the spec's field, and the remedy."""

_BATCH = 256
_MOST_ROWS = 20_000
"""Rows that are looked at in search of one that fits."""
_MERGED = 8
"""Tokens at the end of a prompt that may melt into one with the beginning of its completion."""
_SAMPLE, _PLACES = 200, 8
"""Rows by which lengths are estimated, from so many evenly spread places."""


class Lengths(NamedTuple):
    """Tokens of rows from evenly spread places, shortest first, without those that a chat template adds."""

    rows: list[int]
    """Prompt and the longest completion."""
    prompts: list[int]
    """Prompt alone; 0 where there is none."""


def refusal(session: Session, spec: AnySpec, model: Model, version: DatasetVersion) -> Refusal | None:
    """Why *spec* cannot work with this model's tokenizer on these rows; ``None`` if nothing is known to be wrong."""
    known = tokenizing_of(session, model)
    if wrong := _model_and_tokenizer(spec, model, known):
        return wrong
    with RowReader(datasets.rows_path(session, version)) as reader:
        first = next((row for _, row in reader.rows(0, 1)), None)
        if first is None:
            return None
        return _template(spec, model, known, first) or _nothing_left(spec, known, reader)


def sample(session: Session, actor: Actor, model_id: int, version_id: int) -> Lengths | None:
    """How long the version's rows are in the model's tokens; ``None`` if its tokenizer cannot be asked here."""
    model, version = registry.get_model(session, actor, model_id), datasets.get_version(session, actor, version_id)
    known = tokenizing_of(session, model)
    with RowReader(datasets.rows_path(session, version)) as reader:
        step = max(_SAMPLE // _PLACES, len(reader) // _PLACES)  # a few places: each costs the reading of a row group
        starts = range(0, len(reader), step)
        rows = [row for start in starts for _, row in reader.rows(start, start + _SAMPLE // _PLACES)]
    prompts = known.lengths([_prompt(row) for row in rows])
    answers = [known.lengths(column) for column in zip(*(_answers(row) for row in rows), strict=True)]
    if prompts is None or any(column is None for column in answers):
        return None
    longest = [max(several) for several in zip(*(column for column in answers if column is not None), strict=True)]
    wholes = sorted(a + b for a, b in zip(prompts, longest or [0] * len(prompts), strict=True))
    return Lengths(wholes, sorted(prompts))


def _model_and_tokenizer(spec: AnySpec, model: Model, known: Tokenizing) -> Refusal | None:
    if known.has_end is False:
        return (
            f"The tokenizer of “{model.name}” has no end token (eos_token), so a model could never end.",
            "base_model",
            "Set eos_token in tokenizer_config.json to the token that ends a turn, and register the model again.",
        )
    if known.highest is not None and known.vocabulary is not None and known.highest >= known.vocabulary:
        return (
            f"The tokenizer of “{model.name}” has token {known.highest:,}, but the model knows only {known.vocabulary:,} tokens.",
            "base_model",
            "Register the model with the tokenizer that belongs to it.",
        )
    if known.positions is not None and spec.max_length > known.positions:
        return (
            f"{spec.max_length:,} tokens do not fit: “{model.name}” has {known.positions:,} positions.",
            "max_length",
            f"Set it to {known.positions:,} or less.",
        )
    return None


def _template(spec: AnySpec, model: Model, known: Tokenizing, row: Row) -> Refusal | None:
    if known.template is None or not any(isinstance(row.get(name), list) for name in ("prompt", "messages")):
        return None
    if not known.template:
        return (
            f"The rows are conversations, and “{model.name}” has no chat template.",
            "base_model",
            "Choose a model with a chat template, or rows of plain text.",
        )
    ends = known.ends if isinstance(spec, OnlineSpec) else frozenset({known.end} if known.end is not None else ())
    if ends and not known.may_end_with(ends):
        return (
            f"The chat template of “{model.name}” writes none of its end tokens ({', '.join(sorted(ends))}), "
            "so a completion would never end.",
            "base_model",
            "Set eos_token in tokenizer_config.json to the token that the template writes after a reply, and register "
            "the model again.",
        )
    if isinstance(spec, SFTSpec) and spec.completion_only and "messages" in row and not known.marks_replies:
        return (
            f"The chat template of “{model.name}” does not mark what the assistant says ({{% generation %}}).",
            "completion_only",
            "Turn it off, use rows with prompt and completion, or a template with these markers.",
        )
    return None


def _nothing_left(spec: AnySpec, known: Tokenizing, reader: RowReader) -> Refusal | None:
    """Refused if the prompts of all rows fill the length: what would be learned from begins behind it.

    Of a conversation only the last message counts, since a template may leave earlier ones out.
    """
    if isinstance(spec, OnlineSpec):
        return None  # prompts are cut on their left
    if isinstance(spec, SFTSpec) and not spec.completion_only:
        return None  # what counts begins with the row
    shortest: int | None = None
    rows = (row for _, row in reader.rows(0, _MOST_ROWS))
    while batch := list(islice(rows, _BATCH)):
        lengths = known.lengths([_asked_last(row) for row in batch])
        if lengths is None or min(lengths) < spec.max_length + _MERGED:
            return None  # usually the first batch has such a row
        shortest = min(lengths) if shortest is None else min(shortest, *lengths)
    if shortest is None or len(reader) > _MOST_ROWS:
        return None
    return (
        f"Within {spec.max_length:,} tokens nothing is left to learn from: the shortest prompt has {shortest:,}.",
        "max_length",
        f"Raise it above {shortest:,}, by the length of a completion.",
    )


def _prompt(row: Row) -> str:
    if "messages" in row:
        return text_of(_opening(row["messages"]))
    return text_of(row.get("prompt") or "")


def _asked_last(row: Row) -> str:
    prompt = _opening(row["messages"]) if "messages" in row else row.get("prompt") or ""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"].strip() if prompt else ""


def _opening(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What comes before the assistant's first reply."""
    first = next((n for n, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return list(messages[:first])


def _answers(row: Row) -> Iterator[str]:
    """What follows the prompt; of a pair both."""
    if "messages" in row:
        yield text_of(row["messages"][len(_opening(row["messages"])) :])
    elif "completions" in row:
        yield "\n".join(row["completions"])
    else:
        for name in ("text", "completion", "chosen", "rejected"):
            if row.get(name) is not None:
                yield text_of(row[name])
