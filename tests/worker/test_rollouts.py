"""The sampler writes what a plain pass would write, however the work is divided."""

from itertools import chain
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.worker.small_models import ARCHITECTURES, END, random_model
from worker.report import StopRequested
from worker.rollouts import Written, _draw, fitting, sample

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15], [16], [5, 6, 7, 20, 21]]
SEEDS = [11, 12, 13, 14]


def write(model: Any, prompts: list[list[int]] = PROMPTS, seeds: list[int] = SEEDS, **more: Any) -> list[list[Written]]:
    how: dict[str, Any] = {"copies": 4, "ends": [END], "max_new_tokens": 12, "temperature": 1.0, "pad": 0}
    return sample(model, prompts, seeds, **{**how, **more})


def plain_logps(model: Any, prompt: list[int], completion: list[int], temperature: float = 1) -> torch.Tensor:
    """Log-probability of each token, from one pass over one unpadded text."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    logps: torch.Tensor = (logits / temperature).log_softmax(-1)
    return logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("name", ARCHITECTURES)
class TestEveryArchitecture:
    def test_greedy_completions_are_those_of_transformers(self, name: str) -> None:
        model = random_model(name)
        for prompt, group in zip(PROMPTS, write(model, copies=2, temperature=0), strict=True):
            config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=END, pad_token_id=0)
            expected = model.generate(torch.tensor([prompt]), generation_config=config)[0, len(prompt) :].tolist()
            assert [one.ids for one in group] == [expected, expected]
            assert group[0].ended == (expected[-1] == END)

    def test_log_probabilities_are_those_of_a_plain_pass(self, name: str) -> None:
        model = random_model(name)
        for prompt, group in zip(PROMPTS, write(model, temperature=0.7), strict=True):
            for one in group:
                expected = plain_logps(model, prompt, one.ids, 0.7)
                assert torch.tensor(one.logps) == pytest.approx(expected, abs=2e-4)

    def test_it_does_not_matter_what_is_written_beside_a_completion(self, name: str) -> None:
        """All at once, one prompt at a time, in another order, with prompts left out: token for token the same."""
        model = random_model(name)
        together = [[one.ids for one in group] for group in write(model)]
        assert [[one.ids for one in group] for group in write(model, at_once=4)] == together
        backwards = write(model, PROMPTS[::-1], SEEDS[::-1])
        assert [[one.ids for one in group] for group in backwards[::-1]] == together
        assert [one.ids for one in write(model, PROMPTS[1:2], SEEDS[1:2])[0]] == together[1]


class TestSampling:
    def test_tokens_come_as_often_as_they_are_likely(self) -> None:
        """Of 4000 draws of one token, each token's share is within 4 standard errors of its probability."""
        model = random_model("llama")
        drawn = write(model, [[5, 6, 7]], [1], copies=4000, max_new_tokens=1, temperature=1.5)[0]
        shares = torch.bincount(torch.tensor([one.ids[0] for one in drawn]), minlength=40) / 4000
        with torch.no_grad():
            expected = (model(torch.tensor([[5, 6, 7]])).logits[0, -1] / 1.5).softmax(-1)
        error = (expected * (1 - expected) / 4000).sqrt() + 1e-6
        assert ((shares - expected).abs() / error).max() < 4
        assert (shares > 0).sum() > 5  # a distribution worth the test

    def test_one_number_decides(self) -> None:
        """Probabilities 0, 0.2, 0.3, 0.5 lie up to 0, 0.2, 0.5, 1."""
        probabilities = torch.tensor([0.0, 0.2, 0.3, 0.5])
        uniform = torch.tensor([0.0, 0.1999, 0.2001, 0.4999, 0.5001, 0.9999], dtype=torch.float64)
        chosen, logps = _draw(probabilities.log().repeat(6, 1), 1.0, uniform)
        assert chosen.tolist() == [1, 1, 2, 2, 3, 3]
        assert logps.exp() == pytest.approx(probabilities[chosen])

    def test_copies_differ_and_seeds_repeat(self) -> None:
        model = random_model("llama")
        once = write(model)
        assert once == write(model)
        assert len({tuple(one.ids) for one in once[0]}) > 1
        assert once[0] != write(model, seeds=[99, *SEEDS[1:]])[0]

    def test_a_shorter_limit_cuts_and_changes_nothing_else(self) -> None:
        model = random_model("llama")
        for long, short in zip(chain(*write(model)), chain(*write(model, max_new_tokens=5)), strict=True):
            assert short.ids == long.ids[:5]
            assert short.ended == (long.ended and len(long.ids) <= 5)

    def test_nothing_follows_an_end(self) -> None:
        model = random_model("llama", seed=1)
        written = list(chain(*write(model, copies=32, ends=[END, 7], max_new_tokens=30)))
        assert any(one.ended for one in written)
        for one in written:
            assert not {END, 7}.intersection(one.ids[:-1])
            assert one.ended == (one.ids[-1] in (END, 7))
            assert one.ended or len(one.ids) == 30
            assert len(one.logps) == len(one.ids)


def test_how_many_fit_into_memory() -> None:
    """Qwen3 above: 2 layers × (key + value) × 2 heads × 8 numbers × 2 bytes = 128 bytes a token."""
    config = random_model("qwen3").config
    assert fitting(config, length=100, memory=128 * 100 * 7 + 5) == 7
    assert fitting(config, length=100, memory=10) == 1
    assert fitting(random_model("gpt2").config, length=10, memory=2 * 2 * 4 * 8 * 2 * 10 * 3) == 3


class TestStopping:
    def test_a_request_is_answered_within_a_token(self) -> None:
        model = random_model("llama").train()
        asked = iter([False, False, True])
        with pytest.raises(StopRequested):
            write(model, ends=[], stopped=lambda: next(asked))
        assert model.training  # as it was

    def test_the_mode_is_left_as_it_was(self) -> None:
        model = random_model("llama")
        write(model, max_new_tokens=1)
        assert not model.training
