"""What a model that scores has beside a language model: a layer that reads scores, and a way to find where texts end."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

HEADS = ("score", "classifier")
"""What Transformers calls the layer that scores; ``classifier`` in some models that score each token (GPT-2, NeoX)."""


class Head(torch.nn.Linear):
    """What reads a score from hidden states: in single precision, whatever the layers before it compute in.

    In bfloat16 a score has three digits, and a weight that learns in it mostly stays where it is: beside 0.02, a step of
    1e-5 is rounded away.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., outputs) from (..., hidden size)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight.dtype))


def sharpen(model: PreTrainedModel) -> None:
    """Let *model* read its scores in single precision, if a single layer does."""
    for name in HEADS:
        head = getattr(model, name, None)
        if type(head) is torch.nn.Linear:
            head.__class__ = Head  # the same weights
            head.float()


def head_of(model: Any) -> torch.nn.Linear:
    """The layer of *model* that scores; of an adapter, its own copy."""
    bare = model.get_base_model() if hasattr(model, "peft_config") else model
    head = next(getattr(bare, name) for name in HEADS if hasattr(bare, name))
    found: torch.nn.Linear = getattr(head, "modules_to_save", {"default": head})["default"]
    return found


def head_in(tensors: dict[str, torch.Tensor]) -> Head:
    """The layer that scores, taken out of the *tensors* of an adapter that brings it along; it does not learn."""
    weight, bias = (
        next((tensors.pop(key) for key in list(tensors) if key.endswith(tuple(f"{n}.{part}" for n in HEADS))), None)
        for part in ("weight", "bias")  # Transformers' head over tokens has a bias, the one over texts has none
    )
    assert weight is not None
    head = Head(weight.size(1), weight.size(0), bias=bias is not None).requires_grad_(False)
    head.weight.copy_(weight)
    if bias is not None:
        head.bias.copy_(bias)
    return head


def pad_to_score(tokenizer: PreTrainedTokenizerBase, *, learned: bool) -> None:
    """Give *tokenizer* a padding token that no text ends with, unless it has one.

    Transformers reads a score at the last token that is no padding. Were the end token padding, that would be the one
    before the end, where nobody can tell whether a text has ended. One made to pad is taken, else one that begins texts,
    else the rarest. A model that has *learned* to score keeps what it was padded with, be it the end.
    """
    end, pad = tokenizer.eos_token, tokenizer.pad_token
    if pad is not None and (learned or pad != end):
        return
    ids, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    made = [token for token in sorted(added, key=added.__getitem__) if "pad" in token.lower()]
    begin = [token for token in (tokenizer.bos_token, tokenizer.unk_token) if token in ids]
    # ids of ordinary tokens rise as they get rarer; a token that is spelled otherwise in texts is found in none
    spelled = [token for token in ids if token not in added and tokenizer.convert_tokens_to_string([token]) != token]
    rare = sorted(spelled or ids, key=ids.__getitem__, reverse=True)
    tokenizer.pad_token = next(token for token in [*made, *begin, *rare] if token != end)
