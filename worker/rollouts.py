"""Sampling while a policy learns: several completions of each prompt, as few computations as the model allows.

A prompt is read once, and its keys and values serve all its completions. Prompts are sorted by length into batches, so
that little is padded. Completions that ended leave the batch. Works with every causal language model of Transformers
whose cache grows with the text, adapters included, on any device.

Every token is drawn with a number that its prompt's seed, its copy and its place alone decide. So it does not matter
which completions are written beside each other, in how many processes, or for the how manieth time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from worker.report import StopRequested
from worker.sampling import pad_left

_DROP = 0.75
"""Ended completions leave when less than this share of the batch is still written: leaving copies the cache."""


class Written(NamedTuple):
    """A completion as token ids."""

    ids: list[int]
    """The end token included if it was written."""
    logps: list[float]
    """Log-probability of each token when it was drawn."""
    ended: bool
    """Whether it ended by itself; else it was cut at the longest length."""


@torch.no_grad()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    copies: int,
    ends: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    pad: int,
    at_once: int = 64,
    stopped: Callable[[], bool] = lambda: False,
) -> list[list[Written]]:
    """*copies* completions of each prompt, in order; greedy at *temperature* 0. *at_once*: completions per batch.

    Raises :class:`StopRequested` within a token of *stopped* becoming true. The model is left in the mode it was in.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    together = max(1, at_once // copies)
    written: dict[int, list[Written]] = {}
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), together):
            chosen = order[start : start + together]
            draws = torch.cat([_draws(seeds[i], copies, max_new_tokens) for i in chosen])  # (N, longest)
            batch = _Batch(model, [prompts[i] for i in chosen], copies, pad, draws)
            batch.write(list(ends), temperature, stopped)
            for place, i in enumerate(chosen):
                written[i] = batch.result(place * copies, copies)
    finally:
        model.train(was_training)
    return [written[i] for i in range(len(prompts))]


def fitting(config: Any, length: int, memory: int) -> int:
    """How many completions of *length* tokens, prompt included, have their keys and values in *memory* bytes."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    each: int = 2 * text.num_hidden_layers * heads * size * length * 2  # keys and values, in half precision
    return max(1, min(memory // each, 512))


def _draws(seed: int, copies: int, longest: int) -> Tensor:
    """Uniform numbers in [0, 1), one for each token: (copies, longest). Their beginning does not depend on *longest*."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((longest, copies), generator=generator, dtype=torch.float64).T


class _Batch:
    """Completions that are written side by side."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], copies: int, pad: int, draws: Tensor) -> None:
        device = next(model.parameters()).device
        ids, mask = (tensor.to(device) for tensor in pad_left(prompts, pad))  # (n, P)
        self.model = model
        self.cache = DynamicCache()
        said = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache.batch_repeat_interleave(copies)
        self.logits: Tensor = said.logits[:, -1].repeat_interleave(copies, 0)  # (N, V)
        self.padded = bool((mask == 0).any())
        # the mask of the longest text is made once; only its beginning is shown to the model
        rows, longest = draws.shape
        self.mask = torch.cat([mask.repeat_interleave(copies, 0), mask.new_ones(rows, longest)], 1)
        self.width = ids.size(1)
        self.positions = mask.sum(1).repeat_interleave(copies)  # (N,): of the next token
        self.draws = draws.to(device)
        self.tokens = torch.full((rows, longest), pad, device=device)
        self.logps = torch.zeros((rows, longest), device=device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)

    def write(self, ends: list[int], temperature: float, stopped: Callable[[], bool]) -> None:
        """Token after token, until all have ended."""
        longest = self.tokens.size(1)
        final = torch.tensor(ends, device=self.tokens.device)
        rows = torch.arange(len(self.tokens), device=self.tokens.device)  # which completions are in the batch
        for t in range(longest):
            if stopped():
                raise StopRequested
            chosen, logps = _draw(self.logits, temperature, self.draws[rows, t])
            writing = ~self.ended[rows]
            self.tokens[rows, t] = torch.where(writing, chosen, self.tokens[rows, t])
            self.logps[rows, t] = torch.where(writing, logps, 0.0)
            self.lengths[rows] += writing
            self.ended[rows] |= writing & torch.isin(chosen, final)
            left = (~self.ended[rows]).nonzero().squeeze(1)
            if len(left) == 0 or t + 1 == longest:
                return
            if len(left) <= _DROP * len(rows):
                rows, chosen = rows[left], chosen[left]
                self.positions, self.mask = self.positions[left], self.mask[left]
                self.cache.batch_select_indices(left)
            self.logits = self.model(
                input_ids=chosen.unsqueeze(1),
                attention_mask=self.mask[:, : self.width + t + 1] if self.padded else None,
                position_ids=(self.positions + t).unsqueeze(1),
                past_key_values=self.cache,
                use_cache=True,
            ).logits[:, -1]

    def result(self, start: int, count: int) -> list[Written]:
        """*count* completions from row *start* on."""
        rows = slice(start, start + count)
        columns = (self.tokens, self.logps, self.lengths, self.ended)
        return [
            Written(ids[:length], logps[:length], ended)
            for ids, logps, length, ended in zip(*(column[rows].tolist() for column in columns), strict=True)
        ]


def _draw(logits: Tensor, temperature: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """A token per row of *logits* (N, V), and its log-probability: both (N,).

    The first token up to which more than *uniform* (N,) of the probability lies: so one number decides, and a token
    without probability is never drawn.
    """
    logits = logits.float()
    logps = (logits if temperature in (0, 1) else logits / temperature).log_softmax(-1)
    if temperature == 0:
        chosen = logps.argmax(-1)
    else:
        below = logps.double().exp().cumsum(-1)  # (N, V)
        chosen = torch.searchsorted(below, uniform.unsqueeze(1) * below[:, -1:], right=True).squeeze(1)
    return chosen, logps.gather(1, chosen.unsqueeze(1)).squeeze(1)
