"""A game whose best policy is known: one token of four, a reward for each, and a price for leaving the reference.

max E_π[r] − β·KL(π‖π_ref) is reached by π* ∝ π_ref·exp(r/β). A table of four logits learns from sampled tokens by
nothing but the functions of ``worker.objectives.reinforcement``; distances are total variation, ½·Σ|π − π*|.
"""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from worker.objectives import reinforcement as rl

REFERENCE = torch.tensor([0.4, 0.3, 0.2, 0.1])
REWARD = torch.tensor([0.0, 0.2, 0.5, 1.0])
BETA = 0.5
GROUP = 16

Place = Literal["reward", "loss"]
Advantages = Callable[[Tensor, Tensor], Tensor]
"""Rewards and values of completions of one token, both (B, 1) → advantages (B, 1)."""


def best(reward: Tensor = REWARD, beta: float = BETA) -> Tensor:
    """π_ref·exp(r/β), normalized."""
    return (REFERENCE.log() + reward / beta).softmax(0)


def best_by_forward_kl() -> Tensor:
    """Where E_π[r] − β·KL(π_ref‖π) is greatest: πᵢ·(rᵢ − r̄) + β·(refᵢ − πᵢ) = 0, so πᵢ = β·refᵢ/(λ − rᵢ), Σ = 1."""
    low, high = REWARD.max().item() + 1e-9, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (BETA * REFERENCE / (middle - REWARD)).sum() > 1 else (low, middle)
    return BETA * REFERENCE / (low - REWARD)


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().sum() / 2).item()


def by_gae(rewards: Tensor, values: Tensor) -> Tensor:
    return rl.gae(rewards, values, torch.ones_like(rewards), gamma=1, lam=0.95).advantages


def by_whitened_gae(rewards: Tensor, values: Tensor) -> Tensor:
    return rl.whiten(by_gae(rewards, values), torch.ones_like(rewards))


def by_leaving_one_out(rewards: Tensor, values: Tensor) -> Tensor:
    return rl.leave_one_out(rewards[:, 0], GROUP)[:, None]


def by_group(rewards: Tensor, values: Tensor) -> Tensor:
    return rl.group_advantages(rewards[:, 0], GROUP, "none")[:, None]


def play(advantages: Advantages, place: Place, estimator: rl.Estimator, *, rollouts: int = 300) -> Tensor:
    """The policy learned from *rollouts* of 512 tokens, each learned from twice, at a rate that falls to 0."""
    torch.manual_seed(0)
    logits, value = REFERENCE.log().clone().requires_grad_(), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits], "lr": 0.05}, {"params": [value], "lr": 0.05}])
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=rollouts)
    mask = torch.ones(512, 1)
    for _ in range(rollouts):
        tokens = torch.multinomial(logits.detach().softmax(0), len(mask), replacement=True)[:, None]  # (B, 1)
        old, ref = logits.detach().log_softmax(0)[tokens], REFERENCE.log()[tokens]
        old_values = value.detach().expand_as(old)
        rewards = REWARD[tokens] - (BETA * rl.kl_estimate(old, ref, estimator) if place == "reward" else 0)
        learned = advantages(rewards, old_values)
        for _ in range(2):
            logps = logits.log_softmax(0)[tokens]
            loss = rl.policy_loss(logps, old, learned, mask, clip_low=0.2, clip_high=0.2)
            loss = loss + rl.value_loss(value.expand_as(old), old_values, rewards, mask, clip=0.2)
            if place == "loss":
                loss = loss + BETA * rl.average(rl.kl_estimate(logps, ref, estimator), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        decay.step()
    return logits.detach().softmax(0)


def test_the_best_policy() -> None:
    """π* ∝ (.4, .3·e^.4, .2·e, .1·e²) = (.4, .4475, .5437, .7389)/2.1301; half of Σ|π* − π_ref| is .3017."""
    assert best().tolist() == pytest.approx([0.1878, 0.2101, 0.2552, 0.3469], abs=1e-4)
    assert distance(best(), REFERENCE) == pytest.approx(0.3021, abs=1e-3)


@pytest.mark.parametrize(
    ("advantages", "place", "estimator"),
    [
        (by_gae, "reward", "k1"),  # PPO
        (by_whitened_gae, "reward", "k1"),
        (by_leaving_one_out, "reward", "k1"),  # RLOO
        (by_group, "reward", "k1"),
        (by_gae, "loss", "k2"),
        (by_leaving_one_out, "loss", "k2"),
    ],
)
def test_it_is_learned(advantages: Advantages, place: Place, estimator: rl.Estimator) -> None:
    """To a distance of .001 with KL in the reward, for at π* every token is worth the same, and .005 in the loss."""
    assert distance(play(advantages, place, estimator), best()) < (0.001 if place == "reward" else 0.005)


def test_a_completion_in_its_own_baseline_weakens_rewards_against_divergence() -> None:
    """r − mean with r in the mean is 1 − 1/G of what it should be, KL in the loss is whole: π* of r·(1 − 1/G).

    With KL in the reward both shrink together, and nothing changes.
    """
    weakened = best(REWARD * (1 - 1 / GROUP))
    assert distance(play(by_group, "loss", "k2"), weakened) < 0.005
    assert distance(weakened, best()) == pytest.approx(0.0207, abs=1e-3)


def test_k3_in_the_loss_finds_another_optimum_this_far_off() -> None:
    """Its gradient is that of KL(π_ref‖π): the best policy under that price, (.18, .17, .17, .49), is .14 from π*."""
    assert best_by_forward_kl().tolist() == pytest.approx([0.1814, 0.1662, 0.1659, 0.4866], abs=1e-3)
    assert distance(play(by_gae, "loss", "k3"), best_by_forward_kl()) < 0.005
    assert distance(best_by_forward_kl(), best()) == pytest.approx(0.1397, abs=1e-3)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_miss_it(estimator: rl.Estimator) -> None:
    """Both are smallest at π = π_ref, so a token far rarer than in the reference is fined like one far more common."""
    assert distance(play(by_gae, "reward", estimator), best()) > 0.3


def test_k1_in_the_loss_holds_nothing() -> None:
    """Its gradient is 0 on average: the policy goes to the one best token, as without any price."""
    assert play(by_leaving_one_out, "loss", "k1")[3] > 0.97


def test_whitened_advantages_change_the_price_of_a_divergence_in_the_loss() -> None:
    """Rewards are scaled up as their spread shrinks, KL is not: here the price ends up too low to hold anything."""
    assert play(by_whitened_gae, "loss", "k2")[3] > 0.97
