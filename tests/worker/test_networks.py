"""Models as they lie on disk: merged adapters, heads, 4 bits, and what does not fit."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.runs.specs import FullWeights, LoRA, ModelFolder, QLoRA
from tests.worker.running import BASE
from worker import networks
from worker.report import SpecCannotWork

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 2]])


def adapter(folder: Path, task: networks.Task, weights: LoRA, heads: int = 1) -> Any:
    """An adapter with random weights in *folder*; answers the model that it makes of the base."""
    from peft import get_peft_model

    torch.manual_seed(1)
    config = networks.lora_config(weights, task=task)
    assert config is not None
    model = get_peft_model(networks.load(BASE, task=task, heads=heads), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    (folder / "reward.json").write_text('{"mean": 2}')  # as a recipe writes beside its weights
    return model.eval()


@pytest.mark.parametrize(
    ("task", "weights", "heads"),
    [
        ("CAUSAL_LM", LoRA(rank=4), 1),
        ("CAUSAL_LM", LoRA(rank=4, dora=True), 1),
        ("SEQ_CLS", LoRA(rank=4), 1),
        ("SEQ_CLS", LoRA(rank=4), 3),
        ("TOKEN_CLS", LoRA(rank=4), 2),
    ],
)
@torch.no_grad()
def test_an_adapter_is_merged_into_its_base_head_and_all(
    tmp_path: Path, task: networks.Task, weights: LoRA, heads: int
) -> None:
    made = adapter(tmp_path / "models" / "17", task, weights, heads)
    named = ModelFolder(folder=tmp_path / "models" / "17", adapter_base=BASE)
    folder = networks.folder_of(named, tmp_path)
    assert folder == tmp_path / "merged" / "17"
    torch.manual_seed(2)  # a head drawn anew would differ
    loaded = networks.load(folder, task=task).eval()
    expected = made(input_ids=IDS).logits
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)
    untouched = networks.load(BASE, task=task, heads=heads).eval()(input_ids=IDS).logits
    assert (untouched - expected).abs().max() > 0.1
    assert json.loads((folder / "reward.json").read_text()) == {"mean": 2}
    assert networks.load_tokenizer(folder).eos_token == "<|im_end|>"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert networks.folder_of(named, tmp_path) == folder  # merged once
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    again = networks.folder_of(named, tmp_path / "elsewhere")  # and the same wherever it is done
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_whole_model_stays_where_it_is(tmp_path: Path) -> None:
    assert networks.folder_of(ModelFolder(folder=BASE), tmp_path) == BASE
    assert not list(tmp_path.iterdir())


def test_an_adapter_without_its_base_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "5", "CAUSAL_LM", LoRA(rank=1))
    with pytest.raises(SpecCannotWork) as refused:
        networks.folder_of(ModelFolder(folder=tmp_path / "5"), tmp_path, field="rewards.components[0].models")
    assert refused.value.reason == "rewards.components[0].models: the model is an adapter, and its base is missing"


def test_what_a_model_is_for_must_fit(tmp_path: Path) -> None:
    networks.load(BASE, task="SEQ_CLS").save_pretrained(tmp_path)
    with pytest.raises(SpecCannotWork, match="cannot write text"):
        networks.load(tmp_path)
    with pytest.raises(SpecCannotWork, match="scores whole texts, and the method scores steps"):
        networks.load(tmp_path, task="TOKEN_CLS")


def test_configurations_of_adapters() -> None:
    assert networks.lora_config(FullWeights()) is None
    dora = networks.lora_config(LoRA(rank=3, alpha=6, dropout=0.1, dora=True))
    assert dora is not None
    assert (dora.r, dora.lora_alpha, dora.lora_dropout, dora.use_dora) == (3, 6, 0.1, True)
    four = networks.lora_config(QLoRA(rank=5), reward=True)
    assert four is not None
    assert (four.r, four.use_dora, four.modules_to_save) == (5, False, ["score", "classifier"])


def test_four_bits_are_asked_for_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """NF4 with double quantization, computed in bfloat16; without a GPU or the package the refusal names the remedy."""
    with pytest.raises(SpecCannotWork, match=r"^weights: .*need a GPU") as refused:
        networks.load_to_train(BASE, QLoRA())
    assert refused.value.remedy == "Use LoRA, or a worker with a GPU."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(SpecCannotWork, match=r"^weights: .*bitsandbytes"):
        networks.load_to_train(BASE, QLoRA())
    monkeypatch.setattr(networks, "find_spec", lambda name: object())
    for double in (True, False):
        how = networks._four_bits(QLoRA(double_quantization=double))
        asked = how["quantization_config"]
        assert (asked.load_in_4bit, asked.bnb_4bit_quant_type) == (True, "nf4")
        assert asked.bnb_4bit_use_double_quant is double
        assert asked.bnb_4bit_compute_dtype == torch.bfloat16
        assert asked.llm_int8_skip_modules is None  # the package's own choice: a language model's head
        assert how["device_map"] == {"": 3}
    asked = networks._four_bits(QLoRA(), "TOKEN_CLS")["quantization_config"]
    assert asked.llm_int8_skip_modules == ["score", "classifier"]


def test_a_vocabulary_that_does_not_match_is_refused() -> None:
    model, tokenizer = networks.load(BASE), networks.load_tokenizer(BASE)
    networks.check_fit(model, tokenizer, max_length=2048)
    with pytest.raises(SpecCannotWork, match=r"^max_length: 2049 tokens do not fit: the model has 2048 positions"):
        networks.check_fit(model, tokenizer, max_length=2049)
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr, operator]
    tokenizer.add_tokens([f"<new {n}>" for n in range(rows)])
    with pytest.raises(SpecCannotWork, match=f"^base_model: .*the model knows only {rows} tokens") as refused:
        networks.check_fit(model, tokenizer, max_length=64)
    assert refused.value.remedy == "Upload the tokenizer that belongs to the model."


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "eos_token"}))
    with pytest.raises(SpecCannotWork, match=r"^base_model: the tokenizer has no end token") as refused:
        networks.load_tokenizer(tmp_path / "base")
    assert refused.value.remedy
