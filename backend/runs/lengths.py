"""Whether model, tokenizer and rows fit, asked before a run queues: it costs milliseconds here and a worker's start there.

Every refusal is certain: what the files do not say is left to the worker, which loads the model and asks again.
"""

from collections.abc import Iterator, Sequence
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

_FIRST, _MOST_ROWS = 256, 5_000
"""Rows that are looked at in search of one that fits: usually one of the first does."""
_LONG = 20_000
"""Characters of a text that are looked at: a longer one is longer than any count here says."""
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
    try:
        path = datasets.rows_path(session, version)
    except OSError:  # the worker, which needs them more, will say so
        return None
    with RowReader(path) as reader:
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
    texts = [[text[:_LONG] for text in (_prompt(row), *_answers(row))] for row in rows]
    counted = known.lengths([text for several in texts for text in several])
    if counted is None:
        return None
    counts = iter(counted)
    by_row = [[next(counts) for _ in several] for several in texts]
    return Lengths(
        sorted(prompt + max(answers, default=0) for prompt, *answers in by_row), sorted(row[0] for row in by_row)
    )


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
    if len(reader) > _MOST_ROWS:
        return None
    shortest: int | None = None
    for start, stop in ((0, _FIRST), (_FIRST, _MOST_ROWS)):
        texts = [_asked_last(row)[:_LONG] for _, row in reader.rows(start, stop)]
        if any(len(text.encode()) < spec.max_length for text in texts):
            return None  # a token is at least a byte
        lengths = known.lengths(texts) if texts else []
        if lengths is None or any(length < spec.max_length + _MERGED for length in lengths):
            return None
        shortest = min(lengths if shortest is None else [shortest, *lengths], default=None)
    if shortest is None:
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
