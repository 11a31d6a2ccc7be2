"""With its dropout silenced a model says while it learns what it says while it is frozen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from backend.runs.specs import LoRA
from worker import networks

SIZE: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
IDS = torch.arange(3, 23)[None]
DROPPING: dict[str, Callable[[], Any]] = {
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZE, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.3, layerdrop=0.5)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=64, hidden_size=32, n_head=4, n_layer=2, hidden_dropout=0.3)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)),
    "neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SIZE, intermediate_size=64, attention_dropout=0.3, hidden_dropout=0.3)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, intermediate_size=64, attention_dropout=0.3)),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**SIZE, hidden_dropout=0.3, attention_dropout=0.3)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SIZE, intermediate_size=48, num_key_value_heads=2, num_local_experts=2, router_jitter_noise=0.3)
    ),
}


@pytest.mark.parametrize("name", DROPPING)
@torch.no_grad()
def test_policy_and_reference_agree_at_equal_weights(name: str) -> None:
    torch.manual_seed(0)
    model = DROPPING[name]().train()
    frozen = model.eval()(IDS).logits
    assert not torch.allclose(model.train()(IDS).logits, frozen, atol=1e-4)  # it does drop
    before = model.config.to_dict()
    networks.silence_dropout(model)
    torch.testing.assert_close(model.train()(IDS).logits, frozen)
    assert model.config.to_dict() == before  # what is saved says what it said


@torch.no_grad()
def test_the_adapters_own_dropout_stays() -> None:
    torch.manual_seed(0)
    model = DROPPING["llama"]()
    networks.silence_dropout(model)
    adapted = get_peft_model(model, networks.lora_config(LoRA(rank=2, dropout=0.5)))
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    assert not torch.allclose(adapted.train()(input_ids=IDS).logits, adapted.eval()(input_ids=IDS).logits, atol=1e-3)
