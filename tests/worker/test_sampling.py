from typing import Any

import pytest
import torch

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
