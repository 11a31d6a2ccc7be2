"""Expected values are derived in the docstrings; TRL must agree with the same functions on a real model."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from backend.demo import corpus
from backend.runs.specs import IPO, DPOSpec, Hinge, Robust, Sigmoid
from tests.worker.running import BASE
from worker import networks, objectives, rows
from worker.recipes.dpo import DPO, SoftDPO, loss_arguments
from worker.recipes.reward import Reward
from worker.recipes.sft import SFT

TRAINING: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "max_length": None,
}


def log(*values: float) -> torch.Tensor:
    return torch.tensor([math.log(value) for value in values])


def test_sft_loss_counts_only_labels() -> None:
    """Two words, logits log 3 : log 1 everywhere, so π(word 0) = 3/4 and π(word 1) = 1/4.

    Tokens 0 1 0 1, the first two are the prompt: counted are word 0 (−log 3/4) and word 1 (−log 1/4).
    Mean: (log 4/3 + log 4) / 2 = log(16/3) / 2 = 0.83699.
    """
    logits = torch.tensor([math.log(3), 0.0]).expand(1, 4, 2)
    loss = objectives.sft_loss(logits, torch.tensor([[-100, -100, 0, 1]]))
    assert loss.item() == pytest.approx(math.log(16 / 3) / 2, abs=1e-6)
    assert loss.item() == pytest.approx(0.83699, abs=1e-5)


def test_sft_gradient_raises_the_label() -> None:
    """d loss / d logits = softmax − one-hot: at two equal logits −1/2 for the label and +1/2 for the other."""
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    objectives.sft_loss(logits, torch.tensor([[-100, 1]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([0.5, -0.5])
    assert logits.grad[0, 1].tolist() == [0, 0]  # the last position predicts nothing


def test_reward_loss_with_margin_and_centering() -> None:
    """r_c = log 3, r_r = 0: σ = 3/4, loss log 4/3. Margin log 3 makes the difference 0: log 2.

    Centering λ = 1/2 adds (log 3)² / 2.
    """
    chosen, rejected = log(3), log(1)
    assert objectives.reward_loss(chosen, rejected).item() == pytest.approx(math.log(4 / 3))
    assert objectives.reward_loss(chosen, rejected, log(3)).item() == pytest.approx(math.log(2))
    assert objectives.reward_loss(chosen, rejected, centering=0.5).item() == pytest.approx(
        math.log(4 / 3) + math.log(3) ** 2 / 2
    )


def test_reward_gradient_parts_the_scores() -> None:
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    objectives.reward_loss(chosen, rejected).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == (-0.5, 0.5)


def test_dpo_loss() -> None:
    """π(chosen) = .3 against π_ref .1, π(rejected) = .2 against .2: h = log 3. β = 2: βh = log 9, σ = 9/10.

    Loss log 10/9; with ε = .1: .9·log 10/9 + .1·log 10 = 0.32508. Where policy and reference agree: log 2.
    """
    h = objectives.log_ratios(log(0.3), log(0.2), log(0.1), log(0.2))
    assert objectives.dpo_loss(h, beta=2).item() == pytest.approx(math.log(10 / 9), abs=1e-6)
    assert objectives.dpo_loss(h, beta=2, label_smoothing=0.1).item() == pytest.approx(0.32508, abs=1e-5)
    same = objectives.log_ratios(log(0.3), log(0.2), log(0.3), log(0.2))
    assert objectives.dpo_loss(same, beta=2).item() == pytest.approx(math.log(2))


def test_ipo_loss() -> None:
    """Log-ratios log 3 over 2 tokens and 0 over 5: h̄ = log 3 / 2. β = 1/2: (h̄ − 1)² = 0.20313.

    It is 0 exactly where h̄ = 1/2β, here for β = 1 / log 3.
    """
    h = log(3) / 2 - 0 / 5
    assert objectives.ipo_loss(h, beta=0.5).item() == pytest.approx((math.log(3) / 2 - 1) ** 2, abs=1e-6)
    assert objectives.ipo_loss(h, beta=0.5).item() == pytest.approx(0.20313, abs=1e-5)
    assert objectives.ipo_loss(h, beta=1 / math.log(3)).item() == pytest.approx(0, abs=1e-12)


# --- TRL computes the same --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return networks.load_tokenizer(BASE)


def encoder(tokenizer: Any) -> rows.Encoder:
    return rows.Encoder(tokenizer, 128)


def trainer(kind: Any, config: Any, model: Any, data: Dataset, tokenizer: Any, folder: Path, **more: Any) -> Any:
    made = kind(
        model,
        args=config(output_dir=str(folder), **TRAINING, **more.pop("args", {})),
        train_dataset=data,
        processing_class=tokenizer,
        **more,
    )
    made.model.train()
    return made


def batch_of(made: Any, data: Dataset) -> Any:
    return made.data_collator([data[i] for i in range(len(data))])


def sft_batch(tokenizer: Any) -> Dataset:
    return Dataset.from_dict(rows.demonstrations(encoder(tokenizer), corpus.demonstrations(4, 0), completion_only=True))


def test_trl_sft(tokenizer: Any, tmp_path: Path) -> None:
    from trl import SFTConfig

    data = sft_batch(tokenizer)
    made = trainer(SFT, SFTConfig, networks.load(BASE), data, tokenizer, tmp_path)
    batch = batch_of(made, data)
    theirs = made.compute_loss(made.model, dict(batch))
    plain = networks.load(BASE)
    ours = objectives.sft_loss(
        plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]
    )
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-6)


@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("centering", [0.0, 0.3])
def test_trl_reward(tokenizer: Any, tmp_path: Path, margin: bool, centering: float) -> None:
    from trl import RewardConfig

    data = Dataset.from_dict(rows.scored_pairs(encoder(tokenizer), corpus.preference_pairs(4, 0), use_margin=margin))
    torch.manual_seed(1)
    model = networks.load(BASE, reward=True)
    args = {"center_rewards_coefficient": centering or None}
    made = trainer(Reward, RewardConfig, model, data, tokenizer, tmp_path, args=args)
    batch = batch_of(made, data)
    theirs = made.compute_loss(made.model, dict(batch)).item()
    with torch.no_grad():
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    chosen, rejected = scores.chunk(2)
    margins = torch.tensor(data["margin"][:]) if margin else None
    assert margins is None or margins.sum() > 0
    assert theirs == pytest.approx(objectives.reward_loss(chosen, rejected, margins, centering).item(), rel=1e-6)
    if margin or centering:
        assert theirs != pytest.approx(objectives.reward_loss(chosen, rejected).item(), rel=1e-3)


LOSSES = [
    Sigmoid(),
    Sigmoid(label_smoothing=0.2),
    Sigmoid(label_smoothing=0.1, sft_weight=0.3),
    Sigmoid(sft_weight=0.7),
    IPO(),
    Hinge(),
    Robust(label_smoothing=0.2),
]


def moved(model: Any, by: float = 0.02) -> Any:
    """The same model a little elsewhere, so that no log-ratio is zero."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by * torch.randn_like(parameter)
    return model


def sums_of(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the completions and their numbers of tokens, both (B,), chosen before rejected."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        logps, counts = objectives.token_logps(logits, labels)
    return logps.sum(1), counts.sum(1)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("soft", [False, True], ids=["certain", "soft"])
def test_trl_dpo(tokenizer: Any, tmp_path: Path, loss: Any, soft: bool) -> None:
    """Our functions, TRL's loss, and ours with probabilities of 1 are the same number."""
    from trl import DPOConfig

    spec = DPOSpec(base_model=1, dataset=1, loss=loss, beta=0.4, use_probability=soft)
    pairs = [row | {"probability": 1.0} for row in corpus.preference_pairs(4, 0)]
    data = Dataset.from_dict(rows.comparisons(encoder(tokenizer), pairs, use_probability=soft))
    args = {**loss_arguments(spec), "beta": spec.beta, "disable_dropout": False}
    more = {"args": args, "ref_model": networks.load(BASE), **({"spec": spec} if soft else {})}
    made = trainer(SoftDPO if soft else DPO, DPOConfig, moved(networks.load(BASE)), data, tokenizer, tmp_path, **more)
    batch = batch_of(made, data)
    theirs = made.compute_loss(made.model, dict(batch)).item()

    sums, tokens = sums_of(moved(networks.load(BASE)), batch)
    references, _ = sums_of(networks.load(BASE), batch)
    h = objectives.log_ratios(*sums.chunk(2), *references.chunk(2))
    match loss:
        case Sigmoid():
            ours = objectives.dpo_loss(h, beta=spec.beta, label_smoothing=loss.label_smoothing).mean()
            ours += loss.sft_weight * -sums.chunk(2)[0].sum() / tokens.chunk(2)[0].sum()
        case Robust():
            ours = objectives.robust_loss(h, beta=spec.beta, label_smoothing=loss.label_smoothing).mean()
        case Hinge():
            ours = objectives.hinge_loss(h, beta=spec.beta).mean()
        case IPO():
            means, reference_means = sums / tokens, references / tokens
            h = objectives.log_ratios(*means.chunk(2), *reference_means.chunk(2))
            ours = objectives.ipo_loss(h, beta=spec.beta).mean()
    assert abs(theirs - math.log(2)) > 1e-3
    assert theirs == pytest.approx(ours.item(), rel=2e-6)


def test_padding_and_order_change_nothing(tokenizer: Any) -> None:
    """Per-token log-probabilities are the same alone, padded, and in another order."""
    model = networks.load(BASE).eval()
    pairs = encoder(tokenizer).pairs(
        [row["prompt"] for row in corpus.demonstrations(6, 3)],
        [row["completion"] for row in corpus.demonstrations(6, 3)],
    )

    def summed(which: list[int], padding: int) -> list[float]:
        ids = [pairs[i].prompt + pairs[i].completion for i in which]
        longest = max(map(len, ids)) + padding
        batch = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        labels = torch.full_like(batch, -100)
        for j, i in enumerate(which):
            start = len(pairs[i].prompt)
            labels[j, start : len(ids[j])] = batch[j, start : len(ids[j])]
        with torch.no_grad():
            logps, _ = objectives.token_logps(model(input_ids=batch, attention_mask=mask).logits, labels)
        return logps.sum(1).tolist()

    alone = [summed([i], 0)[0] for i in range(6)]
    assert summed(list(range(6)), 5) == pytest.approx(alone, abs=1e-4)
    assert summed(list(reversed(range(6))), 0)[::-1] == pytest.approx(alone, abs=1e-4)
