"""What a model's files say of its tokenizer: enough to refuse before a run queues what its worker would refuse.

Nothing of the training stack is needed for it, and no code of a chat template runs here: it is only searched. What has to
be carried out, the tokenizer, is so in a process of its own (:mod:`backend.registry.counting`).
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session

from backend.registry import counting
from backend.registry.service import artifacts_of, chain_of, manifest_of
from backend.registry.tables import Model

_GENERATION = re.compile(r"\{%-?\s*generation")
_NO_DEFAULTS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of Transformers that know no token by themselves; the others bring an end token of their own."""


@dataclass(frozen=True)
class Tokenizing:
    """How a model reads text; what its files do not say is ``None``."""

    vocabulary: int | None
    """Rows of the table of embeddings: token ids must be below."""
    positions: int | None
    """Tokens that a text may have at most."""
    highest: int | None
    """Highest token id that the tokenizer gives."""
    has_end: bool | None
    """Whether the tokenizer names an end token."""
    ends: frozenset[str] | None
    """Texts of the tokens that end what the model writes: the tokenizer's end token and the generation config's."""
    end: str | None
    """Text of the tokenizer's end token."""
    template: str | None
    """The chat template; ``""`` if there is none."""
    file: Path | None
    """``tokenizer.json``."""

    def may_end_with(self, tokens: Collection[str]) -> bool:
        """Whether the chat template can write one of *tokens*: by name, or as the variable ``eos_token``."""
        assert self.template is not None
        return any(token in self.template for token in tokens) or (self.end in tokens and "eos_token" in self.template)

    @property
    def marks_replies(self) -> bool:
        """Whether the chat template marks what the assistant says."""
        return bool(_GENERATION.search(self.template or ""))

    def lengths(self, texts: Sequence[str]) -> list[int] | None:
        """Tokens of each of *texts*, without what a template or the tokenizer adds; ``None`` if it cannot be asked."""
        return None if self.file is None else counting.lengths(self.file, texts)


def tokenizing_of(session: Session, model: Model, *, carry_out: bool = True) -> Tokenizing:
    """How *model* reads text. An adapter brings its own tokenizer, or has that of what it changes.

    Unless the tokenizer is *carried out*, which takes a process, ``highest`` and ``ends`` stay unknown.
    """
    store = artifacts_of(session)
    chain = [{entry.name: entry.sha256 for entry in manifest_of(one)} for one in chain_of(session, model)]
    own = next((files for files in reversed(chain) if "tokenizer.json" in files), {})

    def path(files: dict[str, str], name: str) -> Path | None:
        try:
            return store.local_path(files[name]) if name in files else None
        except OSError:  # the worker, which needs it more, will say so
            return None

    def read(files: dict[str, str], name: str) -> dict[str, Any]:
        try:
            found = orjson.loads(file.read_bytes()) if (file := path(files, name)) else {}
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}

    whole = read(chain[0], "config.json")
    config = whole["text_config"] if isinstance(whole.get("text_config"), dict) else whole
    settings, file = read(own, "tokenizer_config.json"), path(own, "tokenizer.json")
    end = _content(settings.get("eos_token")) or _content(read(own, "special_tokens_map.json").get("eos_token"))
    knows = end is not None or settings.get("tokenizer_class") in _NO_DEFAULTS
    beside = path(own, "chat_template.jinja")
    written = read(chain[0], "generation_config.json")
    known = (
        counting.vocabulary(file, (*_ids(config.get("eos_token_id")), *_ids(written.get("eos_token_id"))))
        if file and carry_out
        else None
    )
    template = beside.read_text(errors="replace") if beside else _template(settings.get("chat_template"))
    return Tokenizing(
        vocabulary=_whole(config.get("vocab_size")),
        positions=_whole(config.get("max_position_embeddings")),
        highest=known.highest if known else None,
        has_end=(end is not None) if settings and knows else None,
        end=end,
        ends=_ends(end, known.texts) if known else None,
        template=template if settings else None,
        file=file,
    )


def _ids(written: Any) -> list[int]:
    """Token ids that a config gives as one, several or none."""
    return [one for one in (written if isinstance(written, list) else [written]) if isinstance(one, int)]


def _ends(end: str | None, others: Sequence[str | None]) -> frozenset[str] | None:
    """Texts of all end tokens; ``None`` if one of them is not known."""
    known = [text for text in (end, *others) if text is not None]
    return frozenset(known) if len(known) == 1 + len(others) else None


def _content(token: Any) -> str | None:
    """The text of a token that is written as text or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _template(found: Any) -> str:
    """The chat template of a tokenizer's config: one, or several by name, of which ``default`` counts."""
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
