"""One pass over completions: log-probabilities, entropies and hidden states where something was written, nowhere else.

What the plain pass spends on nothing is left out, and the numbers stay the same up to rounding:

 - a prompt that several completions share is read once, and its keys and values serve them all, gradient included;
 - what is shared too little is read in parts of similar length, prompt and completion side by side without a gap;
 - the vocabulary is only projected to where a completion's token is predicted;
 - where (B, T, V) logits would be large, or a GPU's kernel exists, TRL's tiled head computes them piece by piece.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

_LARGE = 2**26
"""Logits beyond which they are not held all at once: 256 MiB in single precision, about as much again for the gradient."""
_PASS = 128
"""Tokens of padding that are cheaper than one more pass."""


@dataclass(frozen=True)
class Texts:
    """Prompts and what follows them. Prompts are padded on the left, completions on the right."""

    prompt_ids: Tensor
    """(B, P)."""
    prompt_mask: Tensor
    """(B, P): 1 at tokens, 0 at padding."""
    completion_ids: Tensor
    """(B, T)."""
    completion_mask: Tensor
    """(B, T): 1 at tokens, 0 at padding."""


@dataclass(frozen=True)
class Pass:
    """What a model says of completions; padding holds numbers without meaning."""

    logps: Tensor
    """Log-probability of every completion token: (B, T)."""
    entropies: Tensor | None
    """Entropy of the distribution that each was drawn from, without gradient, in nats: (B, T)."""
    hidden: Tensor | None
    """The backbone's last hidden state from which each was predicted: (B, T, H)."""


def read(
    model: nn.Module,
    texts: Texts,
    *,
    temperature: float = 1,
    entropies: bool = False,
    hidden: bool = False,
    checkpointed: bool = False,
) -> Pass:
    """Pass *texts* through *model*, a causal language model of Transformers, wrapped or not.

    *temperature* divides the logits. *checkpointed*: gradient checkpointing is on, which forbids sharing prompts. The
    model must carry TRL's head (``add_fused_lm_head``) for logits that are too large.
    """
    with _watched(model if hidden else None) as seen:
        distinct, owner = _distinct(texts)
        many = texts.completion_ids.numel() * _vocabulary(model)
        if texts.completion_ids.device.type == "cuda" or many > _LARGE:
            logps, spread = _tiled(model, texts, temperature, entropies)
            states = [state[:, texts.prompt_ids.size(1) - 1 : -1] for state in seen]
        elif checkpointed or 4 * len(distinct) > 3 * len(owner):  # too little is shared to be worth a second pass
            parts = _parts(texts)
            told = [_likelihood(_flat(model, part), part.said, temperature, entropies) for part in parts]
            logps = _in_place(texts, parts, [each for each, _ in told])
            spread = _in_place(texts, parts, [each for _, each in told if each is not None]) if entropies else None
            states = [_in_place(texts, parts, list(map(_Part.before, parts, seen)))] if hidden else []
        else:
            logits = _shared(model, texts, distinct, owner)
            logps, spread = _likelihood(logits, texts.completion_ids, temperature, entropies)
            states = [torch.cat([seen[0][owner, -1:], *seen[1:]], 1)] if hidden else []
            states = [state[:, : texts.completion_ids.size(1)] for state in states]
        return Pass(logps, spread, states[0] if states else None)


# --- ways through the model --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some of the texts, from their first token on, padded on the right; a causal model needs no mask for that."""

    ids: Tensor
    """(b, L)."""
    at: Tensor
    """Where in the flattened *ids* something stands after which a completion's token comes: (n,)."""
    said: Tensor
    """Those tokens: (n,)."""
    places: Tensor
    """Where in flattened (B, T) they belong: (n,)."""

    def before(self, each: Tensor) -> Tensor:
        """(n, ...) of (b, L, ...): what precedes the completions' tokens."""
        return each.flatten(0, 1).index_select(0, self.at)


def _parts(texts: Texts) -> list[_Part]:
    """*texts* by length; on a GPU, which is better off with one large pass, as one.

    Several processes read them as one too: each must make as many passes as the others.
    """
    mask = torch.cat([texts.prompt_mask, texts.completion_mask], 1)
    first = mask.argsort(dim=1, descending=True, stable=True)  # tokens before padding, in order
    ids = torch.cat([texts.prompt_ids, texts.completion_ids], 1).gather(1, first)  # (B, P+T)
    prompts, lengths = texts.prompt_mask.sum(1), mask.sum(1)  # (B,)
    order = lengths.argsort(stable=True)
    one = ids.is_cuda or (torch.distributed.is_available() and torch.distributed.is_initialized())
    parts = []
    for start, end in [(0, len(order))] if one else _cuts(lengths[order].tolist()):
        rows = order[start:end]
        width = int(lengths[rows].max())
        column = torch.arange(width, device=ids.device)
        behind = column - (prompts[rows] - 1).unsqueeze(1)  # (b, L): which of the completion's tokens comes next
        row, place = ((behind >= 0) & (column < (lengths[rows] - 1).unsqueeze(1))).nonzero(as_tuple=True)  # (n,)
        parts.append(
            _Part(
                ids=ids[rows, :width],
                at=row * width + place,
                said=ids[rows[row], place + 1],
                places=rows[row] * texts.completion_ids.size(1) + behind[row, place],
            )
        )
    return parts


def _cuts(lengths: list[int], start: int = 0) -> list[tuple[int, int]]:
    """Where to cut *lengths*, which rise: in two wherever that saves more padding than a pass costs, and so on."""
    saved = [i * (lengths[-1] - lengths[i - 1]) for i in range(1, len(lengths))]
    if not saved or max(saved) <= _PASS:
        return [(start, start + len(lengths))]
    cut = saved.index(max(saved)) + 1
    return _cuts(lengths[:cut], start) + _cuts(lengths[cut:], start + cut)


def _in_place(texts: Texts, parts: list[_Part], each: list[Tensor]) -> Tensor:
    """What *each* of the parts says of its tokens, (n, ...), as (B, T, ...); 0 at padding."""
    said = torch.cat(each)
    whole = said.new_zeros(texts.completion_ids.numel(), *said.shape[1:])
    whole = whole.index_copy(0, torch.cat([part.places for part in parts]), said)
    return whole.view(*texts.completion_ids.shape, *said.shape[1:])


def states(backbone: nn.Module, texts: Texts) -> Tensor:
    """Last hidden states of *backbone*, a model without a head, before every completion token: (B, T, H)."""
    parts = _parts(texts)
    return _in_place(
        texts, parts, [part.before(backbone(input_ids=part.ids, use_cache=False).last_hidden_state) for part in parts]
    )


def _flat(model: nn.Module, part: _Part) -> Tensor:
    """Logits of completion tokens: (n, V). The head gets to see no other states."""
    head = _inner(model).get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _head, inputs: (part.before(inputs[0]), *inputs[1:]))
    try:
        logits: Tensor = model(input_ids=part.ids, use_cache=False).logits
    finally:
        hook.remove()
    return logits


def _shared(model: nn.Module, texts: Texts, distinct: Tensor, owner: Tensor) -> Tensor:
    """The same with every distinct prompt (its row in *distinct*) read once; *owner*: each completion's prompt."""
    cache = DynamicCache()
    mask = texts.prompt_mask[distinct]
    before: Tensor = model(
        input_ids=texts.prompt_ids[distinct],
        attention_mask=mask,
        position_ids=_positions(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    cache.batch_select_indices(owner)  # a copy whose gradient flows back
    whole = torch.cat([texts.prompt_mask, texts.completion_mask], 1)
    length = texts.completion_ids.size(1)
    if length == 1:
        return before[owner, -1:]
    after: Tensor = model(
        input_ids=texts.completion_ids[:, :-1],
        attention_mask=whole[:, :-1],
        position_ids=_positions(whole)[:, -length:-1],
        past_key_values=cache,
        use_cache=True,
    ).logits
    return torch.cat([before[owner, -1:], after], 1)


def _tiled(model: nn.Module, texts: Texts, temperature: float, entropies: bool) -> tuple[Tensor, Tensor | None]:
    ids = torch.cat([texts.prompt_ids, texts.completion_ids], 1)
    mask = torch.cat([texts.prompt_mask, texts.completion_mask], 1)
    labels = ids.masked_fill(mask == 0, -100)
    keep = texts.completion_ids.size(1)
    labels[:, :-keep] = -100
    said = model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), labels=labels, fused_lm_head=True)
    return said.log_probs[:, -keep:], said.entropy[:, -keep:].detach() if entropies else None


def _likelihood(logits: Tensor, said: Tensor, temperature: float, entropies: bool) -> tuple[Tensor, Tensor | None]:
    """Of logits (..., V): log-probabilities of the tokens *said* (...), and entropies."""
    if temperature != 1:
        logits = logits / temperature
    normalizer = logits.logsumexp(-1)  # (...)
    picked = logits.gather(-1, said.unsqueeze(-1)).squeeze(-1)
    if not entropies:
        return picked - normalizer, None
    with torch.no_grad():
        probabilities = (logits - normalizer.unsqueeze(-1)).exp_()
        expected = torch.einsum("...v,...v->...", probabilities, logits)
    return picked - normalizer, normalizer.detach() - expected


# --- what they need ----------------------------------------------------------------------------------------------


def _positions(mask: Tensor) -> Tensor:
    """Position of each token counted from its text's first: padding on the left moves nothing."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _distinct(texts: Texts) -> tuple[Tensor, Tensor]:
    """A row for each distinct prompt, and of each row which of them is its own."""
    first: dict[bytes, int] = {}
    rows: list[int] = []
    owner: list[int] = []
    both = (texts.prompt_ids * 2 + texts.prompt_mask).cpu().numpy()
    for i, row in enumerate(both):
        known = first.setdefault(row.tobytes(), len(rows))
        if known == len(rows):
            rows.append(i)
        owner.append(known)
    device = texts.prompt_ids.device
    return torch.tensor(rows, device=device), torch.tensor(owner, device=device)


def _vocabulary(model: nn.Module) -> int:
    return int(_bare(model).config.get_text_config().vocab_size)


def _bare(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel and the like."""
    return model.module if hasattr(model, "module") else model


def _inner(model: nn.Module) -> Any:
    """The language model inside all of that and PEFT's."""
    bare = _bare(model)
    return bare.get_base_model() if hasattr(bare, "get_base_model") else bare


@contextmanager
def _watched(model: nn.Module | None) -> Iterator[list[Tensor]]:
    """What the backbone puts out inside: its last hidden states, one for each pass."""
    seen: list[Tensor] = []
    if model is None:
        yield seen
        return
    hook = _inner(model).base_model.register_forward_hook(
        lambda _module, _inputs, said: seen.append(said.last_hidden_state)
    )
    try:
        yield seen
    finally:
        hook.remove()
