"""Heads that read scores: their precision, their names, and the end of a text, which they must get to see."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2ForTokenClassification,
    GPTNeoXConfig,
    GPTNeoXForTokenClassification,
    LlamaConfig,
    LlamaForTokenClassification,
    PreTrainedTokenizerFast,
)

from backend.runs.specs import LoRA
from tests.worker.running import BASE
from worker import heads, networks, scoring
from worker.encoding import Pair

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 2]])
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


# --- precision ---------------------------------------------------------------------------------------------------


def in_half(task: networks.Task) -> Any:
    """An adapter as it is trained on a GPU: its frozen weights are bfloat16."""
    torch.manual_seed(0)
    model = networks.load(BASE, task=task, heads=2, dtype=torch.bfloat16)
    return get_peft_model(model, networks.lora_config(LoRA(rank=2), task=task))


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
def test_a_head_learns_in_single_precision_on_weights_in_half(task: networks.Task) -> None:
    """In bfloat16, 100 steps of 1e-5 leave six weights of seven where they were, to the last bit."""
    model = in_half(task)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    head = heads.head_of(model)
    assert head.weight.requires_grad
    before = head.weight.detach().clone()
    optimizer = torch.optim.AdamW([head.weight], lr=1e-5, weight_decay=0)
    for _ in range(3):
        head.weight.grad = torch.ones_like(head.weight)
        optimizer.step()
    torch.testing.assert_close(before - head.weight, torch.full_like(before, 3e-5), atol=3e-8, rtol=1e-2)


@torch.no_grad()
def test_scores_are_read_in_single_precision_with_and_without_autocast() -> None:
    model = in_half("SEQ_CLS").eval()
    hidden = model.get_base_model().model(IDS).last_hidden_state
    assert hidden.dtype == torch.bfloat16
    expected = hidden[:, -1].float() @ heads.head_of(model).weight.T
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            score = model(input_ids=IDS).logits
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected, atol=2e-2 if enabled else 1e-6, rtol=0)


def test_what_learns_is_lifted_and_what_is_frozen_stays() -> None:
    """As a trainer of TRL leaves an adapter on weights in 4 bits, a critic beside it."""
    model = in_half("SEQ_CLS")
    model.critic = torch.nn.Linear(3, 1)
    same = {name: id(p) for name, p in model.named_parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    networks.lift(model)
    learns, frozen = ([p for p in model.parameters() if p.requires_grad is wanted] for wanted in (True, False))
    assert {p.dtype for p in learns} == {torch.float32}
    assert len(learns) > 40
    assert torch.bfloat16 in {p.dtype for p in frozen}
    assert {name: id(p) for name, p in model.named_parameters()} == same  # roles and optimizers know them


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: GPT2ForTokenClassification(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)), "classifier"),
        (lambda: GPTNeoXForTokenClassification(GPTNeoXConfig(**SMALL, intermediate_size=64)), "classifier"),
        (lambda: LlamaForTokenClassification(LlamaConfig(**SMALL, intermediate_size=64)), "score"),
    ],
    ids=["gpt2", "neox", "llama"],
)
@torch.no_grad()
def test_the_head_over_tokens_is_learned_whole_whatever_its_name(tmp_path: Path, make: Any, name: str) -> None:
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, networks.lora_config(LoRA(rank=2), task="TOKEN_CLS")).eval()
    head = heads.head_of(model)
    assert head.weight.requires_grad
    assert not any("lora_" in key for key, _ in model.named_parameters() if name in key)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    model.save_pretrained(tmp_path / "adapter")
    again = networks.load(tmp_path / "base", task="TOKEN_CLS").eval()
    again = PeftModel.from_pretrained(again, str(tmp_path / "adapter")).merge_and_unload()
    torch.testing.assert_close(again(IDS).logits, model(input_ids=IDS).logits)
    found = heads.head_in(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert found.weight.equal(head.weight)
    assert found.bias.equal(head.bias)
    assert not found.weight.requires_grad


# --- the end of a text -------------------------------------------------------------------------------------------


def without_padding(folder: Path, pad: str | None = None) -> Path:
    """The demo's base as if its tokenizer had no padding token, or *pad*."""
    shutil.copytree(BASE, folder)
    path = folder / "tokenizer_config.json"
    said = json.loads(path.read_text())
    del said["pad_token"]
    path.write_text(json.dumps(said | ({"pad_token": pad} if pad else {})))
    return folder


def scores(folder: Path, *, batch_size: int = 8) -> list[float]:
    """Of a text that does not end, one that does, and the longer one that fills the batch."""
    torch.manual_seed(0)
    tokenizer = networks.load_tokenizer(folder, task="SEQ_CLS")
    scorer = scoring.TextScorer(networks.load(folder, task="SEQ_CLS"), tokenizer)
    ids, end = tokenizer("What is 1+2? It is 3")["input_ids"], tokenizer.eos_token_id
    told = [
        verdict.score for verdict in scorer.scores([Pair(ids, []), Pair(ids, [end]), Pair(ids * 2, [end])], batch_size)
    ]
    return [score for score in told if score is not None]


@pytest.mark.parametrize("pad", [None, "<|im_end|>"], ids=["none", "the end"])
def test_an_end_is_read_whatever_a_language_model_is_padded_with(tmp_path: Path, pad: str | None) -> None:
    folder = without_padding(tmp_path / "base", pad)
    tokenizer = networks.load_tokenizer(folder, task="SEQ_CLS")
    assert tokenizer.pad_token == "<|pad|>"  # there is one, the tokenizer only does not say so
    told = scores(folder)
    assert told == pytest.approx(scores(folder, batch_size=1), abs=1e-5)
    assert abs(told[0] - told[1]) > 1e-3
    assert told == pytest.approx(scores(BASE), abs=1e-5)  # where it does
    assert networks.load_tokenizer(folder).pad_token == "<|im_end|>"  # a language model's labels say what counts


def test_a_model_that_has_learned_to_score_keeps_its_padding(tmp_path: Path) -> None:
    """Whole, or an adapter: its head has never seen another place."""
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    tokenizer = networks.load_tokenizer(without_padding(tmp_path / "base"))
    networks.load(BASE, task="SEQ_CLS").save_pretrained(whole)
    in_half("SEQ_CLS").save_pretrained(adapter)
    for folder in (whole, adapter):
        tokenizer.save_pretrained(folder)
        assert networks.load_tokenizer(folder, task="SEQ_CLS").pad_token == "<|im_end|>"


@pytest.mark.parametrize("named", [{}, {"bos_token": "<s>"}, {"bos_token": "<end>", "unk_token": "<end>"}], ids=str)
def test_without_a_padding_token_a_rare_one_pads_and_texts_are_encoded_as_before(
    named: dict[str, str], tmp_path: Path
) -> None:
    """As in GPT-2, whose only special token ends texts."""
    vocabulary = {"<end>": 0, "<s>": 1, "a": 2, "b": 3, "\u0120": 4, "\u0120a": 5, "c": 6}
    words = Tokenizer(models.BPE(vocabulary, [("\u0120", "a")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", **named)
    before = tokenizer("ab a c<end>")["input_ids"]
    heads.pad_to_score(tokenizer, learned=False)
    assert tokenizer.pad_token == ("<s>" if named.get("bos_token") == "<s>" else "\u0120a")
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again.pad_token == tokenizer.pad_token
    assert again("ab a c<end>")["input_ids"] == before
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_merged_model_says_itself_where_it_is_read(tmp_path: Path) -> None:
    base, adapter = without_padding(tmp_path / "base"), tmp_path / "adapter"
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "pad_token_id": config["eos_token_id"]}))
    in_half("SEQ_CLS").save_pretrained(adapter)
    networks.load_tokenizer(base, task="SEQ_CLS").save_pretrained(adapter)
    networks.merge(base, adapter, tmp_path / "merged")
    said = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert said["pad_token_id"] == networks.load_tokenizer(BASE).pad_token_id != config["eos_token_id"]
