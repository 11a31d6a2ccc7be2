"""Reading somebody's ``tokenizer.json`` in a child process (``python -m backend.registry.counting``), within limits.

The file is data, but a program as well: its rules may blow up a text a thousandfold, loop, or crash the library that
carries them out. So the web only ever gets to see an answer, or none.
"""

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

MEMORY_BYTES = 2 << 30
"""Address space of the child: the tokenizer of a large model takes a tenth of it."""
SECONDS = 5
MOST_CHARACTERS = 4_000_000
"""Of all texts of one call together."""
_PLACES = threading.BoundedSemaphore(2)
"""Children at once: the others wait, or go without an answer."""


class Vocabulary(NamedTuple):
    """What a tokenizer's file says of its tokens."""

    highest: int | None
    """Highest id; ``None`` if it has none."""
    texts: tuple[str | None, ...]
    """Texts of the ids that were asked for; ``None`` for one that it does not have."""


@lru_cache(maxsize=256)
def vocabulary(file: Path, ids: tuple[int, ...]) -> Vocabulary | None:
    """What *file* says of its tokens; ``None`` if it cannot be read."""
    answer = _ask({"file": str(file), "ids": ids})
    return None if answer is None else Vocabulary(answer["highest"], tuple(answer["texts"]))


def lengths(file: Path, texts: Sequence[str]) -> list[int] | None:
    """Tokens of each of *texts* by the tokenizer in *file*; ``None`` if it fails, or there is too much to count."""
    if sum(map(len, texts)) > MOST_CHARACTERS:
        return None
    answer = _ask({"file": str(file), "count": list(texts)})
    return None if answer is None else answer["lengths"]


def _ask(order: dict[str, Any]) -> dict[str, Any] | None:
    if not _PLACES.acquire(timeout=SECONDS):
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", "backend.registry.counting"],
            input=json.dumps(order).encode(errors="replace"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).resolve().parents[2],
            env={"PATH": os.environ.get("PATH", ""), "TOKENIZERS_PARALLELISM": "false", "LANG": "C.UTF-8"},
            timeout=SECONDS,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    finally:
        _PLACES.release()
    return found


# --- the child ---------------------------------------------------------------------------------------------------


def _tokens(tokenizer: dict[str, Any]) -> dict[int, str]:
    """Id → token."""
    known, found = tokenizer["model"]["vocab"], dict[int, str]()
    if isinstance(known, dict):  # BPE, WordPiece, WordLevel
        found |= {number: token for token, number in known.items()}
    else:  # Unigram: pairs of token and score
        found |= {number: token for number, (token, _) in enumerate(known)}
    return found | {added["id"]: added["content"] for added in tokenizer.get("added_tokens") or []}


def _count(file: str, texts: list[str]) -> list[int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(encoded.ids) for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def main() -> None:
    """Read the order from standard input, write the answer to standard output; anything else is no answer."""
    order = json.loads(sys.stdin.buffer.read())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    os.nice(5)
    if "count" in order:
        answer: dict[str, Any] = {"lengths": _count(order["file"], order["count"])}
    else:
        tokens = _tokens(json.loads(Path(order["file"]).read_bytes()))
        answer = {"highest": max(tokens, default=None), "texts": [tokens.get(number) for number in order["ids"]]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
