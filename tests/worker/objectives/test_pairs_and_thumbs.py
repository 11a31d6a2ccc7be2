"""Losses on pairs and thumbs: expected values are derived in the docstrings, and TRL must agree on a real model."""

import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from backend.demo import corpus
from backend.runs.specs import KTOSpec, ORPOSpec, SimPOSpec
from tests.worker.objectives.test_preferences import batch_of, encoder, log, moved, sums_of, trainer
from tests.worker.running import BASE
from worker import networks, objectives, rows
from worker.recipes import kto, orpo, pairs, simpo


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return networks.load_tokenizer(BASE)


# --- pairs, with a reference -------------------------------------------------------------------------------------


def test_hinge_loss() -> None:
    """h = log 3: β = 1/2 leaves 1 − log(3)/2 = 0.45069; β = 2 is past the margin: 0, and no gradient."""
    assert objectives.hinge_loss(log(3), beta=0.5).item() == pytest.approx(0.45069, abs=1e-5)
    h = log(3).requires_grad_()
    settled = objectives.hinge_loss(h, beta=2)
    settled.sum().backward()
    assert h.grad is not None
    assert (settled.item(), h.grad.item()) == (0, 0)


def test_robust_loss_undoes_flips() -> None:
    """βh = log 9: L(h) = log 10/9, L(−h) = log 10. ε = .1: (.9·0.10536 − .1·2.30259)/.8 = −0.16929.

    Labels flipped with probability ε average to the clean loss: .9·robust(h) + .1·robust(−h) = log 10/9.
    """
    robust = partial(objectives.robust_loss, beta=2, label_smoothing=0.1)
    assert robust(log(3)).item() == pytest.approx(-0.16929, abs=1e-5)
    assert (0.9 * robust(log(3)) + 0.1 * robust(-log(3))).item() == pytest.approx(math.log(10 / 9), abs=1e-6)


def test_soft_labels_are_met_not_exceeded() -> None:
    """βh = log 9, σ = .9: with p = .9 the loss is its entropy, −.9·log .9 − .1·log .1 = 0.32508, and the gradient 0.

    A tie pulls back: d/dh = β(σ − p) = 2·(.9 − .5) = .8; certainty pushes on: 2·(.9 − 1) = −.2. At h = 0 a tie rests.
    """
    dpo = partial(objectives.dpo_loss, beta=2)

    def at(h: Tensor, p: float) -> tuple[float, float]:
        h = h.clone().requires_grad_()
        loss = objectives.soft(dpo, h, torch.tensor([p])).sum()
        loss.backward()
        assert h.grad is not None
        return loss.item(), h.grad.item()

    assert at(log(3), 0.9) == pytest.approx((0.32508, 0), abs=1e-5)
    assert at(log(3), 0.5)[1] == pytest.approx(0.8, abs=1e-6)
    assert at(log(3), 1.0) == pytest.approx((math.log(10 / 9), -0.2), abs=1e-6)
    assert at(log(1), 0.5) == pytest.approx((math.log(2), 0), abs=1e-6)


def test_every_soft_loss_rests_at_a_tie_and_turns_with_the_pair() -> None:
    """p·L(h) + (1−p)·L(−h) is the same for (h, p) and (−h, 1−p), and even in h for p = 1/2; IPO's is least at (2p−1)/2β."""
    losses: list[Callable[[Tensor], Tensor]] = [
        partial(objectives.dpo_loss, beta=0.7, label_smoothing=0.1),
        partial(objectives.ipo_loss, beta=0.7),
        partial(objectives.hinge_loss, beta=0.7),
        partial(objectives.robust_loss, beta=0.7, label_smoothing=0.1),
    ]
    h, p = torch.tensor([0.4, -1.3]), torch.tensor([0.8, 0.3])
    for loss in losses:
        torch.testing.assert_close(objectives.soft(loss, h, p), objectives.soft(loss, -h, 1 - p))
        tie = torch.zeros(1, requires_grad=True)
        objectives.soft(loss, tie, torch.tensor([0.5])).sum().backward()
        assert tie.grad is not None
        assert tie.grad.item() == pytest.approx(0, abs=1e-7)
    best = torch.tensor([(2 * 0.8 - 1) / (2 * 0.7)], requires_grad=True)
    objectives.soft(losses[1], best, torch.tensor([0.8])).sum().backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0, abs=1e-6)


def test_reward_loss_with_probabilities() -> None:
    """r_c − r_r = log 3, σ = 3/4. p = 3/4: the entropy, −¾·log ¾ − ¼·log ¼ = 0.56234, at rest. p = 1/2: d/dr_c = σ − p = ¼."""

    def at(p: float) -> tuple[float, float]:
        chosen = log(3).requires_grad_()
        loss = objectives.reward_loss(chosen, log(1), probability=torch.tensor([p]))
        loss.backward()
        assert chosen.grad is not None
        return loss.item(), chosen.grad.item()

    assert at(0.75) == pytest.approx((0.56234, 0), abs=1e-5)
    assert at(0.5)[1] == pytest.approx(0.25, abs=1e-6)
    assert at(1.0)[0] == objectives.reward_loss(log(3), log(1)).item()


# --- thumbs ------------------------------------------------------------------------------------------------------


def test_kto_loss() -> None:
    """r = log 3, z = 0, β = 1: σ = 3/4, so a thumb up costs 1/4 and a thumb down 3/4; λ_D = 2, λ_U = 3: 1/2 and 9/4.

    At z = log 3 both are at the reference point: 1/2. The gradients there: −λ_D/4 and +λ_U/4.
    """
    both = torch.tensor([True, False])
    ratio = log(3, 3)
    assert objectives.kto_loss(ratio, both, log(1), beta=1).tolist() == pytest.approx([0.25, 0.75])
    weights = {"desirable_weight": 2.0, "undesirable_weight": 3.0}
    assert objectives.kto_loss(ratio, both, log(1), beta=1, **weights).tolist() == pytest.approx([0.5, 2.25])
    ratio.requires_grad_()
    there = objectives.kto_loss(ratio, both, log(3), beta=1, **weights)
    there.sum().backward()
    assert ratio.grad is not None
    assert there.tolist() == pytest.approx([1.0, 1.5])
    assert ratio.grad.tolist() == pytest.approx([-0.5, 0.75])


def test_kto_reference_point_is_no_less_than_zero_and_learns_nothing() -> None:
    """Mean of log 2 and log 8: 2·log 2. Mean of log 2 and −log 8: −log 2, so 0."""
    assert objectives.kto_reference_point(log(2, 8)).item() == pytest.approx(2 * math.log(2))
    assert objectives.kto_reference_point(log(2, 1 / 8)).item() == 0
    assert not objectives.kto_reference_point(log(2, 8).requires_grad_()).requires_grad


# --- pairs, without a reference ----------------------------------------------------------------------------------


def test_orpo_loss() -> None:
    """P(chosen) = 3/4 has odds 3, P(rejected) = 1/2 odds 1: log 3, σ = 3/4. .2 + .5·log 4/3 = 0.34384.

    Certainty has infinite odds; here they stay finite, and so does the gradient.
    """
    assert objectives.log_odds_ratio(log(0.75), log(0.5)).item() == pytest.approx(math.log(3), abs=1e-6)
    loss = objectives.orpo_loss(log(0.75), log(0.5), torch.tensor(0.2), odds_weight=0.5)
    assert loss.item() == pytest.approx(0.34384, abs=1e-5)
    certain = torch.zeros(1, requires_grad=True)
    objectives.orpo_loss(certain, log(0.5), torch.tensor(0.0), odds_weight=1).sum().backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_simpo_loss() -> None:
    """Mean log-probabilities log 1/2 and log 1/4, β = 2: 2·log 2 = log 4; γ = log 4/3 leaves log 3: −log 3/4."""
    loss = objectives.simpo_loss(log(0.5), log(0.25), beta=2, gamma=math.log(4 / 3))
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-6)


NLL = torch.tensor(0.0)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": lambda c, r: objectives.dpo_loss(c - r, beta=0.5),
    "ipo": lambda c, r: objectives.ipo_loss(c - r, beta=0.5),
    "hinge": lambda c, r: objectives.hinge_loss(c - r, beta=0.5),
    "robust": lambda c, r: objectives.robust_loss(c - r, beta=0.5, label_smoothing=0.1),
    "soft": lambda c, r: objectives.soft(partial(objectives.dpo_loss, beta=0.5), c - r, torch.tensor([0.8])),
    "orpo": lambda c, r: objectives.orpo_loss(c, r, NLL, odds_weight=0.5),
    "simpo": lambda c, r: objectives.simpo_loss(c, r, beta=2, gamma=0.5),
    "kto": lambda c, r: objectives.kto_loss(torch.cat([c, r]), torch.tensor([True, False]), NLL, beta=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_raise_the_chosen_token_and_lower_the_rejected(name: str) -> None:
    """Two words, equal logits; the chosen completion is word 0, the rejected word 1.

    A step down the gradient raises word 0 against word 1 after the chosen's prompt, and lowers word 1 after the
    rejected's: in each the two gradients are opposite, since only differences of logits count.
    """
    logits = torch.zeros(2, 2, 2, requires_grad=True)  # (chosen and rejected, T, V)
    logps, _ = objectives.token_logps(logits, torch.tensor([[-100, 0], [-100, 1]]))
    chosen, rejected = logps.sum(1).chunk(2)
    LOSSES[name](chosen, rejected).sum().backward()
    assert logits.grad is not None
    for side in logits.grad[:, 0]:
        assert side[0] < 0
        assert side[0] == pytest.approx(-side[1].item())


# --- TRL computes the same ---------------------------------------------------------------------------------------


def test_trl_odds_ratio_and_simpo() -> None:
    """TRL's experimental trainers as an oracle, on numbers; they are not used otherwise."""
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = -torch.rand(5) * 3 - 0.01, -torch.rand(5) * 3 - 0.01
    there: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        beta=0.3,
        simpo_gamma=0.7,
        alpha=0.0,
        loss_type="simpo",
        label_smoothing=0.0,
    )
    subtracted, rewards, _, ratio, odds = ORPOTrainer.odds_ratio_loss(there, chosen, rejected)
    nll = torch.tensor(0.4)
    torch.testing.assert_close(objectives.orpo_loss(chosen, rejected, nll, odds_weight=0.3), nll - subtracted)
    torch.testing.assert_close(objectives.log_odds_ratio(chosen, rejected).mean(), odds)
    side = [pairs.Side(10 * mean, torch.full((5,), 10)) for mean in (chosen, rejected)]
    told = orpo.judged(ORPOSpec(base_model=1, dataset=1, odds_weight=0.3), *side)
    torch.testing.assert_close(told.chosen, rewards)
    torch.testing.assert_close(told.told["log_odds_ratio"].mean(), ratio)
    theirs, *_ = CPOTrainer.cpo_loss(there, chosen, rejected)
    torch.testing.assert_close(objectives.simpo_loss(chosen, rejected, beta=0.3, gamma=0.7), theirs)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)], ids=["equal", "weighted"])
def test_trl_kto(tokenizer: Any, tmp_path: Path, weights: tuple[float, float]) -> None:
    """The policy is moved away from its reference, so that neither the log-ratios nor z_ref are zero.

    Of held-out rows we say the same of all of them at once, whatever their batches: here of four and of two.
    """
    from trl import KTOConfig

    data = kto.with_neighbors(Dataset.from_dict(rows.thumbs(encoder(tokenizer), corpus.thumbs(6, 0))), 128)
    given = dict(zip(("desirable_weight", "undesirable_weight"), weights, strict=True))
    spec = KTOSpec(base_model=1, dataset=1, beta=0.4, **given)
    args = {"beta": spec.beta, **given, "train_sampling_strategy": "sequential", "disable_dropout": False}
    model, reference = moved(networks.load(BASE)), networks.load(BASE)
    made = trainer(kto.KTO, KTOConfig, model, data, tokenizer, tmp_path, args=args, ref_model=reference)
    batch = batch_of(made, data)
    theirs = made.compute_loss(made.model, dict(batch)).item()

    policy, reference = moved(networks.load(BASE)), networks.load(BASE)
    ratios = sums_of(policy, batch)[0] - sums_of(reference, batch)[0]
    shifted = {name.removeprefix("KL_"): values for name, values in batch.items() if name.startswith("KL_")}
    z_ref = objectives.kto_reference_point(sums_of(policy, shifted)[0] - sums_of(reference, shifted)[0])
    ours = objectives.kto_loss(ratios, batch["label"], z_ref, beta=spec.beta, **given).mean()
    assert made._metrics["train"]["kl"] == [pytest.approx(z_ref.item(), abs=1e-5)]
    assert 0 < batch["label"].sum() < 6
    assert theirs == pytest.approx(ours.item(), rel=2e-6)

    made.model.eval()
    made._kept = defaultdict(list)
    with torch.no_grad():
        for part in (slice(0, 4), slice(4, 6)):
            made.compute_loss(made.model, {name: values[part] for name, values in batch.items()})
    told = kto.of_rows(spec, {name: torch.cat(values) for name, values in made._kept.items()})
    assert told["loss"] == pytest.approx(theirs, rel=2e-6)
    for name, values in made._metrics["train"].items():
        if name != "num_tokens":
            assert told[name] == pytest.approx(values[0], rel=1e-5, abs=1e-6), name


# --- one pass over pairs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_padding_order_and_what_is_masked_change_nothing(tokenizer: Any, name: str) -> None:
    """The same pairs in another order, padded on the right or on the left by any token, have the same loss."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    model = moved(networks.load(BASE)).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    encoded = rows.comparisons(encoder(tokenizer), corpus.preference_pairs(5, 0))
    examples = [{key: encoded[key][i] for key in encoded} for i in range(5)]
    batch = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id)(examples)
    judged: Any = {
        "orpo": partial(orpo.judged, ORPOSpec(base_model=1, dataset=1, odds_weight=0.5)),
        "simpo": partial(simpo.judged, SimPOSpec(base_model=1, dataset=1, sft_weight=0.5)),
    }[name]

    def loss(inputs: Any) -> float:
        with torch.no_grad():
            sides = pairs.passed(model, inputs)
        value: float = judged(sides.chosen, sides.rejected).loss.item()
        return value

    def padded(*, left: int = 0, right: int = 0) -> dict[str, Tensor]:
        fill = {"input_ids": 7, "attention_mask": 0, "completion_mask": 0}
        return {key: torch.nn.functional.pad(batch[key], (left, right), value=fill[key]) for key in batch}

    plain = loss(batch)
    assert loss(padded(right=4)) == pytest.approx(plain, rel=1e-5)
    assert loss(padded(left=3)) == pytest.approx(plain, rel=1e-5)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = {key: values[torch.cat([order, order + 5])] for key, values in batch.items()}
    assert loss(turned) == pytest.approx(plain, rel=1e-5)
    other = {**batch, "input_ids": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, 9)}
    assert loss(other) == pytest.approx(plain, rel=1e-5)
    assert loss({**batch, "completion_mask": batch["attention_mask"]}) != pytest.approx(plain, rel=1e-3)
