from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from backend.demo import corpus
from tests.worker.running import BASE
from worker import networks, rows
from worker.report import StopRequested
from worker.sampling import complete


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return networks.load_tokenizer(BASE)


@pytest.fixture(scope="module")
def model() -> Any:
    return networks.load(BASE)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    encoder = rows.Encoder(tokenizer, 128)
    texts = [encoder.render(row["prompt"], reply=True) for row in corpus.prompts(12, 0)]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]


def test_a_batch_is_what_each_prompt_gets_alone(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    assert len({len(prompt) for prompt in prompts}) > 1  # so that padding matters
    together = complete(model, tokenizer, prompts, max_new_tokens=48, batch_size=5)
    alone = [complete(model, tokenizer, [prompt], max_new_tokens=48)[0] for prompt in prompts]
    assert together == alone
    assert all(sample.ended for sample in together)
    assert all(corpus.is_well_formed(sample.text) or "Answer" in sample.text for sample in together)


def test_what_the_model_says_about_generating_is_set_aside(tokenizer: Any, prompts: list[list[int]]) -> None:
    """The most probable tokens, whatever the model's files ask for; their end tokens count, and they stay as they were."""
    model: Any = networks.load(BASE)
    plain = complete(model, tokenizer, prompts[:3], max_new_tokens=24)
    said = tokenizer(plain[0].text, add_special_tokens=False)["input_ids"]
    asked = GenerationConfig(
        repetition_penalty=1.5, min_p=0.9, no_repeat_ngram_size=1, suppress_tokens=[said[0]], num_beams=2, max_length=30
    )
    asked.eos_token_id = said[1]
    model.generation_config = asked
    told = complete(model, tokenizer, prompts[:3], max_new_tokens=24)
    asked.eos_token_id = None
    assert complete(model, tokenizer, prompts[:3], max_new_tokens=24) == plain
    assert model.generation_config is asked
    adapted: Any = get_peft_model(model, LoraConfig(r=2))
    assert complete(adapted, tokenizer, prompts[:3], max_new_tokens=24) == plain
    assert adapted.get_base_model().generation_config is asked
    assert told[0].text == tokenizer.decode(said[:2], skip_special_tokens=True)
    assert (told[0].tokens, told[0].ended) == (2, True)


def test_a_cut_completion_has_not_ended(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    for sample in complete(model, tokenizer, prompts[:3], max_new_tokens=3):
        assert (sample.tokens, sample.ended) == (3, False)


def test_sampling_is_seeded_and_leaves_the_training_alone(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    model.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    samples = [complete(model, tokenizer, prompts, max_new_tokens=24, temperature=1, seed=s) for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert samples[0] == samples[1] != samples[2]


def test_a_request_to_stop_breaks_off_within_a_token(model: Any, tokenizer: Any, prompts: list[list[int]]) -> None:
    asked = 0

    def stopped() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(StopRequested):
        complete(model, tokenizer, prompts, max_new_tokens=1000, stopped=stopped)
    assert asked <= 5
