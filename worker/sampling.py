"""Completions of many prompts at once, left-padded, with a generator of their own.

Sampling between two training steps must not change the training: it runs on a forked random state and leaves the
model in the mode it was in. It is read to see what was learned: what the model's files say about generating (a repetition
penalty, tokens never said, a longest length) is set aside, all but its end tokens.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from worker.report import StopRequested


class Sampled(NamedTuple):
    """What a model wrote after a prompt."""

    text: str
    """Without special tokens."""
    tokens: int
    """Its length, the end-of-turn token included if it was written."""
    ended: bool
    """Whether it ended by itself; else it was cut at ``max_new_tokens``."""


class _Interrupt(StoppingCriteria):
    """Ends a batch in the middle when somebody asks the recipe to stop."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: object) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.stopped(), device=input_ids.device, dtype=torch.bool)  # type: ignore[return-value]


def pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both ``(B, T)``, every prompt ending at the last position."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@contextlib.contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """Without the model's own generation config: Transformers takes from there whatever a call leaves open."""
    network = model.get_base_model() if hasattr(model, "get_base_model") else model  # an adapter's config is its base's
    own = network.generation_config
    network.generation_config = GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0,
    seed: int = 0,
    batch_size: int = 64,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Sampled]:
    """One completion per prompt (token ids), in order; greedy if *temperature* is 0.

    Raises :class:`StopRequested` within a token of *stopped* becoming true.
    """
    ends = {tokenizer.eos_token_id}
    known = model.generation_config.eos_token_id if model.generation_config else None
    ends.update(known if isinstance(known, list) else [] if known is None else [known])
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {}),
    )
    criteria = StoppingCriteriaList([_Interrupt(stopped)])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sampled: list[Sampled] = []
    try:
        with _as_it_is(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for start in range(0, len(prompts), batch_size):
                ids, mask = pad_left(prompts[start : start + batch_size], tokenizer.pad_token_id)
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=config,
                    stopping_criteria=criteria,
                )[:, ids.size(1) :]  # (B, at most max_new_tokens)
                if stopped():
                    raise StopRequested
                sampled.extend(_cut(tokenizer, row, ends) for row in written.tolist())
    finally:
        model.train(was_training)
    return sampled


def _cut(tokenizer: PreTrainedTokenizerBase, row: list[int], ends: set[int]) -> Sampled:
    """A row up to its first end token; what follows is padding."""
    end = next((i for i, token in enumerate(row) if token in ends), None)
    tokens = row if end is None else row[: end + 1]
    return Sampled(str(tokenizer.decode(tokens, skip_special_tokens=True)), len(tokens), end is not None)
