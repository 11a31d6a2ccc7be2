"""Random models of several architectures, small enough for a test: what differs is positions, heads, windows, caps."""

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 40
END = 3
_SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": END,
    "bos_token_id": None,
}

ARCHITECTURES = ("llama", "qwen3", "gpt2", "gemma2")


def random_model(name: str, seed: int = 0) -> Any:
    """A causal language model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    match name:
        case "llama":
            model: Any = LlamaForCausalLM(LlamaConfig(**_SIZE))
        case "qwen3":  # shared keys and values, normalized queries
            model = Qwen3ForCausalLM(Qwen3Config(**_SIZE, num_key_value_heads=2, head_dim=8))
        case "gpt2":  # learned positions
            model = GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=END)
            )
        case "gemma2":  # every second layer sees a window, logits are capped
            model = Gemma2ForCausalLM(
                Gemma2Config(**_SIZE, num_key_value_heads=2, head_dim=8, sliding_window=6, attn_implementation="eager")
            )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model.eval()
