"""Reading completions: whichever way through the model is taken, the numbers and gradients are those of a plain pass."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from trl.trainer.utils import add_fused_lm_head

from tests.worker.small_models import ARCHITECTURES, random_model
from worker import forward
from worker.forward import Pass, Texts
from worker.reading import Reading

# two prompts with three and two completions, and one alone; rows of a prompt need not stand side by side
ROWS = [
    ([5, 6, 7], [10, 11, 12, 3]),
    ([8, 9, 10, 11, 12], [13, 3]),
    ([5, 6, 7], [20]),
    ([8, 9, 10, 11, 12], [14, 15, 16]),
    ([5, 6, 7], [10, 11, 3]),
    ([30], [31, 32, 33, 34]),
]


def texts(rows: list[tuple[list[int], list[int]]] = ROWS, more: int = 0) -> Texts:
    """Padded by *more* than needed on both sides."""
    width, length = max(len(p) for p, _ in rows) + more, max(len(c) for _, c in rows) + more
    return Texts(
        torch.tensor([[0] * (width - len(p)) + p for p, _ in rows]),
        torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p, _ in rows]),
        torch.tensor([c + [0] * (length - len(c)) for _, c in rows]),
        torch.tensor([[1] * len(c) + [0] * (length - len(c)) for _, c in rows]),
    )


def tiled(model: Any, padded: Texts, **more: Any) -> Pass:
    """TRL's head, which is taken where logits are large."""
    large, forward._LARGE = forward._LARGE, 0
    try:
        return forward.read(model, padded, **more)
    finally:
        forward._LARGE = large


def gradient(said: Pass, padded: Texts) -> None:
    """Into the parameters: that of the sum of all log-probabilities."""
    torch.autograd.backward((said.logps * padded.completion_mask).sum())


def parted(model: Any, padded: Texts, **more: Any) -> Pass:
    """A part for every length."""
    costly, forward._PASS = forward._PASS, 0
    try:
        return forward.read(model, padded, checkpointed=True, **more)
    finally:
        forward._PASS = costly


WAYS: dict[str, Callable[..., Pass]] = {
    "parted": parted,
    "shared": forward.read,
    "whole": lambda model, padded, **more: forward.read(model, padded, checkpointed=True, **more),
    "tiled": tiled,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_way_gives_the_numbers_of_a_plain_pass(name: str, way: str) -> None:
    model = random_model(name)
    add_fused_lm_head(model, temperature=0.8, outputs=("log_probs", "entropy"))
    padded = texts(more=2)
    said = WAYS[way](model, padded, temperature=0.8, entropies=True, hidden=True)
    assert said.entropies is not None
    assert said.hidden is not None
    assert not said.entropies.requires_grad
    gradient(said, padded)
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()
    for i, (prompt, completion) in enumerate(ROWS):
        out = model(torch.tensor([prompt + completion]), output_hidden_states=True)
        logps = (out.logits[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1)
        picked = logps.gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)
        picked.sum().backward()
        count = len(completion)
        assert said.logps[i, :count].detach() == pytest.approx(picked.detach(), abs=2e-4)
        assert said.entropies[i, :count] == pytest.approx(-(logps.exp() * logps).sum(-1).detach(), abs=2e-4)
        states = out.hidden_states[-1][0, len(prompt) - 1 : -1]
        assert (said.hidden[i, :count] - states).abs().max() < 2e-4 * (1 + states.abs().max())
    for key, parameter in model.named_parameters():
        scale = parameter.grad.abs().max() + 1e-6
        assert (gradients[key] - parameter.grad).abs().max() / scale < 1e-3, key


def test_sharing_reads_each_prompt_once() -> None:
    """Three prompts of at most 5 tokens, then six completions of which the last token is nobody's business."""
    model = random_model("llama")
    seen: list[tuple[int, int]] = []
    model.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    forward.read(model, texts())
    assert seen == [(3, 5), (6, 3)]


def test_prompts_without_company_are_read_with_their_completions() -> None:
    model = random_model("llama")
    seen: list[tuple[int, int]] = []
    model.model.embed_tokens.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape)))
    forward.read(model, texts([ROWS[0], ROWS[1], ROWS[5]]))
    assert seen == [(3, 7)]  # 3 + 4 tokens, 5 + 2 and 1 + 4: no gap between


def test_texts_are_cut_by_length_where_that_saves_more_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2, 3, 9, 10 tokens the first two as a part of their own save 2 · 7; then 3 − 2 and 10 − 9 are too little."""
    monkeypatch.setattr(forward, "_PASS", 13)
    assert forward._cuts([2, 3, 9, 10]) == [(0, 2), (2, 4)]
    monkeypatch.setattr(forward, "_PASS", 14)
    assert forward._cuts([2, 3, 9, 10]) == [(0, 4)]
    monkeypatch.setattr(forward, "_PASS", 0)
    assert forward._cuts([2, 3, 9, 9]) == [(0, 1), (1, 2), (2, 4)]
    assert forward._cuts([5]) == [(0, 1)]


@pytest.mark.parametrize("rows", [ROWS[::-1], ROWS[:3] * 40])
def test_a_backbones_states_are_those_of_each_text_alone(rows: list[tuple[list[int], list[int]]]) -> None:
    model: Any = random_model("llama").model
    said = forward.states(model, texts(rows, more=1))
    assert said.shape == (len(rows), max(len(completion) for _, completion in rows) + 1, 32)
    for i, (prompt, completion) in enumerate(rows[:6]):
        alone = model(torch.tensor([prompt + completion])).last_hidden_state[0, len(prompt) - 1 : -1]
        assert (said[i, : len(completion)] - alone).abs().max() < 1e-4
        assert not said[i, len(completion) :].any()


def test_completions_of_one_token_need_only_the_prompts() -> None:
    model = random_model("llama")
    rows = [([5, 6], [7]), ([5, 6], [8]), ([5, 6], [9]), ([5, 6], [7])]
    said = forward.read(model, texts(rows), hidden=True)
    with torch.no_grad():
        logps = model(torch.tensor([[5, 6]])).logits[0, -1].log_softmax(-1)
    assert said.logps[:, 0].detach() == pytest.approx(logps[[7, 8, 9, 7]], abs=1e-5)
    assert said.hidden is not None
    assert said.hidden.shape == (4, 1, 32)


def test_an_adapter_is_read_and_learns() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(random_model("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    padded = texts()
    shared = forward.read(model, padded)
    whole = forward.read(model, padded, checkpointed=True)
    mask = padded.completion_mask
    assert (shared.logps * mask).detach() == pytest.approx((whole.logps * mask).detach(), abs=1e-4)
    gradient(shared, padded)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.fixture
def half() -> Iterator[Accelerator]:
    """One in half precision; what it leaves behind would be that of every later one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_reference_reads_in_the_policys_precision(half: Accelerator) -> None:
    """Half precision is a wrapper around a prepared model: without it equal weights would not say the same."""
    policy, reference = random_model("llama"), random_model("llama")
    policy = half.prepare_model(add_fused_lm_head(policy) or policy).eval()
    trainer = SimpleNamespace(accelerator=half, temperature=1.0, args=SimpleNamespace(device="cpu"))
    Reading.set_reference(trainer, reference)  # type: ignore[arg-type]
    plain = random_model("llama").eval()
    said, again, full = (forward.read(model, texts()).logps.detach() for model in (policy, trainer.reference, plain))
    assert said.equal(again)
    assert not said.equal(full)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
