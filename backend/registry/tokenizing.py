"""What a model's files say of its tokenizer: enough to refuse before a run queues what its worker would refuse.

Nothing of the training stack is needed for it, and no code of a chat template runs here: it is only searched.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy.orm import Session
from tokenizers import Tokenizer

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
        tokenizer = _load(self.file) if self.file is not None else None
        if tokenizer is None:
            return None
        return [len(encoded.ids) for encoded in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def tokenizing_of(session: Session, model: Model) -> Tokenizing:
    """How *model* reads text. An adapter brings its own tokenizer, or has that of what it changes."""
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
    settings, tokens = read(own, "tokenizer_config.json"), _tokens(read(own, "tokenizer.json"))
    end = _content(settings.get("eos_token")) or _content(read(own, "special_tokens_map.json").get("eos_token"))
    knows = end is not None or settings.get("tokenizer_class") in _NO_DEFAULTS
    beside = path(own, "chat_template.jinja")
    ids = [_ids(found.get("eos_token_id")) for found in (config, read(chain[0], "generation_config.json"))]
    return Tokenizing(
        vocabulary=_whole(config.get("vocab_size")),
        positions=_whole(config.get("max_position_embeddings")),
        highest=max(tokens.values(), default=None),
        has_end=(end is not None) if settings and knows else None,
        end=end,
        ends=_ends(end, [*ids[0], *ids[1]], tokens),
        template=(beside.read_text() if beside else _template(settings.get("chat_template"))) if settings else None,
        file=path(own, "tokenizer.json"),
    )


def _tokens(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Token → id in a ``tokenizer.json``."""
    model, found = tokenizer.get("model"), dict[str, int]()
    known = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(known, dict):  # BPE, WordPiece, WordLevel
        found |= {token: number for token, number in known.items() if isinstance(number, int)}
    elif isinstance(known, list):  # Unigram: pairs of token and score
        found |= {entry[0]: number for number, entry in enumerate(known) if isinstance(entry, list) and entry}
    for added in tokenizer.get("added_tokens") or []:
        if isinstance(added, dict) and isinstance(added.get("id"), int):
            found[str(added.get("content"))] = added["id"]
    return found


def _ids(written: Any) -> list[int]:
    """Token ids that a config gives as one, several or none."""
    return [one for one in (written if isinstance(written, list) else [written]) if isinstance(one, int)]


def _ends(end: str | None, ids: Sequence[int], tokens: dict[str, int]) -> frozenset[str] | None:
    """Texts of all end tokens; ``None`` if one of them is not known."""
    by_id = {number: token for token, number in tokens.items()}
    if end is None or any(number not in by_id for number in ids):
        return None
    return frozenset({end, *(by_id[number] for number in ids)})


def _content(token: Any) -> str | None:
    """The text of a token that is written as text or as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _template(found: Any) -> str:
    """The chat template of a tokenizer's config: one, or several by name, of which ``default`` counts."""
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


@lru_cache(maxsize=2)  # one of a large model takes a hundred megabytes
def _load(file: Path) -> Tokenizer | None:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception:  # the library raises nothing more exact; the worker will say what is wrong with it
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
