"""Expected values are derived in the docstrings; naive loops and TRL must agree with the same functions."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from worker.objectives import reinforcement as rl

B, T = 4, 6


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ragged() -> torch.Tensor:
    """Completions of 6, 3, 1 and 5 tokens, padded on the right."""
    return (torch.arange(T) < torch.tensor([[6], [3], [1], [5]])).float()


class TestKL:
    def test_values(self) -> None:
        """π = 1/2, π_ref = 1/4: ρ = log 2. k1 = log 2, k2 = (log 2)²/2, k3 = 1/2 − 1 + log 2 = log 2 − 1/2."""
        logps, ref = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
        assert rl.kl_estimate(logps, ref, "k1").item() == pytest.approx(math.log(2))
        assert rl.kl_estimate(logps, ref, "k2").item() == pytest.approx(math.log(2) ** 2 / 2)
        assert rl.kl_estimate(logps, ref, "k3").item() == pytest.approx(math.log(2) - 0.5)

    def test_k1_and_k3_are_unbiased_and_k2_is_not(self) -> None:
        """Summed over all tokens with their probabilities, k1 and k3 give the divergence exactly.

        For k3: Σ π(π_ref/π − 1) = 0. For (3/4, 1/4) against (1/2, 1/2) the divergence is 0.13081 and k2 gives
        (3/4·(log 3/2)² + 1/4·(log 1/2)²)/2 = 0.12171.
        """
        policy, reference = torch.tensor([0.75, 0.25]), torch.tensor([0.5, 0.5])
        expected = {
            name: (policy * rl.kl_estimate(policy.log(), reference.log(), name)).sum().item()  # type: ignore[arg-type]
            for name in ("k1", "k2", "k3")
        }
        assert expected["k1"] == pytest.approx(0.13081, abs=1e-5)
        assert expected["k3"] == pytest.approx(expected["k1"], abs=1e-6)
        assert expected["k2"] == pytest.approx(0.12171, abs=1e-5)

    def test_what_flows_back_when_it_is_the_loss(self) -> None:
        """Two tokens, π = (p, 1 − p) with p = σ(θ), reference (q, 1 − q). ∇log π is (1 − p, −p); dp/dθ = p(1 − p).

        KL(π‖π_ref)          p(1 − p)·(log p/q − log (1−p)/(1−q))
        E[∇k1] = E[∇log π]   0
        E[∇k2] = E[ρ∇log π]  p(1 − p)·(ρ₁ − ρ₂), which is the first line
        E[∇k3]               p(1−p)·((1−q)/(1−p) − q/p) = p − q, the gradient of KL(π_ref‖π)
        """
        theta, q = torch.tensor(0.8, requires_grad=True), 0.3
        p = torch.sigmoid(theta)
        logps, ref = torch.stack([p, 1 - p]).log(), torch.tensor([q, 1 - q]).log()
        weights = logps.detach().exp()  # how often each token is sampled: no gradient flows through it

        def gradient(loss: torch.Tensor) -> float:
            (found,) = torch.autograd.grad(loss, theta, retain_graph=True)
            return found.item()

        reverse = gradient((logps.exp() * (logps - ref)).sum())
        forward = gradient((ref.exp() * (ref - logps)).sum())
        share = p.item()
        assert reverse == pytest.approx(
            share * (1 - share) * (math.log(share / q) - math.log((1 - share) / (1 - q))), abs=1e-6
        )
        expected = {"k1": 0.0, "k2": reverse, "k3": forward}
        for name, value in expected.items():
            assert gradient((weights * rl.kl_estimate(logps, ref, name)).sum()) == pytest.approx(value, abs=1e-6), name  # type: ignore[arg-type]
        assert forward == pytest.approx(share - q, abs=1e-6)
        assert (reverse, forward) == pytest.approx((0.352, 0.390), abs=1e-3)  # not the same

    def test_in_the_reward_k1_gives_the_gradient_of_the_divergence(self) -> None:
        """E[ρ·∇log π], ρ as a number: what REINFORCE does with a reward of −ρ."""
        logits = drawn(0, 5).requires_grad_()
        logps, ref = logits.log_softmax(0), drawn(1, 5).log_softmax(0)
        cost = rl.kl_estimate(logps.detach(), ref, "k1")
        (by_reward,) = torch.autograd.grad((logps.detach().exp() * cost * logps).sum(), logits, retain_graph=True)
        (exact,) = torch.autograd.grad((logps.exp() * (logps - ref)).sum(), logits)
        torch.testing.assert_close(by_reward, exact)


class TestAdaptiveBeta:
    def test_it_follows_the_target(self) -> None:
        """KL 6.6 at target 6 is an error of 0.1; 64 of 640 completions: β·(1 + 0.1·0.1) = 1.01 β."""
        assert rl.adaptive_beta(0.5, 6.6, target=6, horizon=640, completions=64) == pytest.approx(0.505)
        assert rl.adaptive_beta(0.5, 6, target=6, horizon=640, completions=64) == 0.5
        assert rl.adaptive_beta(0.5, 5.4, target=6, horizon=640, completions=64) == pytest.approx(0.495)

    @pytest.mark.parametrize(("kl", "factor"), [(1e9, 1.02), (0.0, 0.98), (-50.0, 0.98)])
    def test_no_error_counts_for_more_than_a_fifth(self, kl: float, factor: float) -> None:
        assert rl.adaptive_beta(1, kl, target=6, horizon=640, completions=64) == pytest.approx(factor)

    def test_a_horizon_shorter_than_a_rollout_never_turns_the_penalty_into_a_reward(self) -> None:
        assert rl.adaptive_beta(1, 0, target=6, horizon=1, completions=64) == pytest.approx(0.8)


class TestAverage:
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 100.0, 100.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])

    def test_the_three(self) -> None:
        """Tokens: (1 + 2 + 3 + 6)/4 = 3. Completions: (2 + 6)/2 = 4. By a length of 10: 12/(2·10) = 0.6."""
        assert rl.average(self.values, self.mask).item() == 3
        assert rl.average(self.values, self.mask, "completion").item() == 4
        assert rl.average(self.values, self.mask, "constant", length=10).item() == pytest.approx(0.6)
        with pytest.raises(ValueError, match="length"):
            rl.average(self.values, self.mask, "constant")

    @pytest.mark.parametrize("over", ["token", "completion", "constant"])
    def test_what_does_not_count_does_not_matter(self, over: Any) -> None:
        """A completion without a token that counts, and anything at all behind the mask."""
        values = torch.cat([self.values, torch.full((1, 3), math.nan)])
        mask = torch.cat([self.mask, torch.zeros(1, 3)])
        expected = rl.average(self.values, self.mask, over, length=10)
        assert rl.average(values, mask, over, length=10).item() == expected.item()
        assert rl.average(values, torch.zeros_like(mask), over, length=10).item() == 0

    @pytest.mark.parametrize("over", ["token", "completion", "constant"])
    def test_the_parts_of_a_step_add_up(self, over: Any) -> None:
        values, mask = drawn(0, B, T), ragged()
        total = mask.sum() if over == "token" else torch.tensor(B)
        parts = [
            rl.average(v, m, over, length=T, total=total) for v, m in zip(values.split(1), mask.split(1), strict=True)
        ]
        torch.testing.assert_close(sum(parts), rl.average(values, mask, over, length=T))


class TestWhiten:
    def test_values(self) -> None:
        """1, 2, 3: mean 2, variance 2/3: ∓√(3/2), 0. With the mean kept: 2 ∓ √(3/2), 2."""
        values, mask = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
        s = math.sqrt(1.5)
        assert rl.whiten(values, mask)[0].tolist() == pytest.approx([-s, 0, s, 0], abs=1e-6)
        assert rl.whiten(values, mask, shift_mean=False)[0].tolist() == pytest.approx([2 - s, 2, 2 + s, 0], abs=1e-6)

    def test_equal_values_become_zero_and_not_infinite(self) -> None:
        assert rl.whiten(torch.full((1, 3), 7.0), torch.ones(1, 3)).tolist() == [[0, 0, 0]]


def test_explained_variance() -> None:
    """Returns 1, 2, 3 (variance 2/3): the returns themselves explain all, a constant nothing, 2·return −1 − … less.

    Values 3, 2, 1: returns − values = −2, 0, 2 with variance 8/3: 1 − 4 = −3.
    """
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), torch.ones(1, 3)
    for values, expected in (([1.0, 2.0, 3.0], 1), ([9.0, 9.0, 9.0], 0), ([3.0, 2.0, 1.0], -3)):
        assert rl.explained_variance(torch.tensor([values]), returns, mask).item() == pytest.approx(expected, abs=1e-6)


def naive_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Σ_l (γλ)^l·δ_{t+l}, each sum written out."""
    deltas = [r + gamma * (values[t + 1] if t + 1 < len(values) else 0) - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** i * delta for i, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


class TestGAE:
    def test_values(self) -> None:
        """Reward 1 at the last of three tokens, values 1/2, γ = 1/2, λ = 1/2.

        δ = (0 + 1/4 − 1/2, 0 + 1/4 − 1/2, 1 + 0 − 1/2) = (−1/4, −1/4, 1/2).
        Â₃ = 1/2, Â₂ = −1/4 + 1/8 = −1/8, Â₁ = −1/4 − 1/32 = −9/32; returns add 1/2: 7/32, 3/8, 1.
        """
        found = rl.gae(torch.tensor([[0.0, 0, 1]]), torch.full((1, 3), 0.5), torch.ones(1, 3), gamma=0.5, lam=0.5)
        assert found.advantages.tolist() == [[-9 / 32, -1 / 8, 1 / 2]]
        assert found.returns.tolist() == [[7 / 32, 3 / 8, 1]]

    @pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
    @pytest.mark.parametrize("gamma", [0.9, 1.0])
    def test_a_naive_loop_agrees(self, gamma: float, lam: float) -> None:
        rewards, values, mask = drawn(0, B, T), drawn(1, B, T), ragged()
        found = rl.gae(rewards, values, mask, gamma=gamma, lam=lam)
        for row, length in enumerate((6, 3, 1, 5)):
            expected = naive_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, lam)
            assert found.advantages[row].tolist() == pytest.approx(expected + [0] * (T - length), abs=1e-5)
            returns = [a + v for a, v in zip(expected, values[row, :length].tolist(), strict=True)]
            assert found.returns[row].tolist() == pytest.approx(returns + [0] * (T - length), abs=1e-5)

    def test_lambda_one_is_what_came_after_and_lambda_zero_looks_one_token_ahead(self) -> None:
        """λ = 1: the return is Σ γ^l·r, whatever the values; λ = 0: r + γ·V of the next token."""
        rewards, values, mask = drawn(0, 1, 4), drawn(1, 1, 4), torch.ones(1, 4)
        r, v = rewards[0].tolist(), values[0].tolist()
        whole = rl.gae(rewards, values, mask, gamma=0.9, lam=1).returns[0].tolist()
        assert whole == pytest.approx([sum(0.9**i * x for i, x in enumerate(r[t:])) for t in range(4)], abs=1e-6)
        ahead = rl.gae(rewards, values, mask, gamma=0.9, lam=0).returns[0].tolist()
        assert ahead == pytest.approx([r[t] + 0.9 * (v[t + 1] if t < 3 else 0) for t in range(4)], abs=1e-6)

    def test_padding_on_either_side_changes_nothing(self) -> None:
        rewards, values, mask = drawn(0, B, T), drawn(1, B, T), ragged()
        plain = rl.gae(rewards, values, mask, gamma=0.9, lam=0.7)

        def pad(x: torch.Tensor, filler: float) -> torch.Tensor:
            return torch.nn.functional.pad(x, (2, 3), value=filler)

        padded = rl.gae(pad(rewards, 99), pad(values, math.nan), pad(mask, 0), gamma=0.9, lam=0.7)
        for before, after in zip(plain, padded, strict=True):
            assert after[:, 2:-3].equal(before)
            assert after[:, :2].eq(0).all()
            assert after[:, -3:].eq(0).all()

    def test_the_order_of_completions_changes_nothing(self) -> None:
        rewards, values, mask = drawn(0, B, T), drawn(1, B, T), ragged()
        order = torch.tensor([2, 0, 3, 1])
        plain = rl.gae(rewards, values, mask, gamma=0.9, lam=0.7)
        turned = rl.gae(rewards[order], values[order], mask[order], gamma=0.9, lam=0.7)
        assert turned.advantages.equal(plain.advantages[order])


class TestBaselines:
    def test_groups(self) -> None:
        """Groups (1, 3) and (2, 2): centered ∓1 and 0; deviation of the first √2 (n − 1 = 1), of all four √(2/3)."""
        rewards = torch.tensor([1.0, 3.0, 2.0, 2.0])
        s, b = math.sqrt(2) + 1e-4, math.sqrt(2 / 3) + 1e-4
        assert rl.group_advantages(rewards, 2).tolist() == pytest.approx([-1 / s, 1 / s, 0, 0], abs=1e-6)
        assert rl.group_advantages(rewards, 2, "batch").tolist() == pytest.approx([-1 / b, 1 / b, 0, 0], abs=1e-6)
        assert rl.group_advantages(rewards, 2, "none").tolist() == [-1, 1, 0, 0]

    def test_leave_one_out(self) -> None:
        """(1, 2, 6): against the mean of the other two: 1 − 4, 2 − 3.5, 6 − 1.5."""
        assert rl.leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3).tolist() == [-3, -1.5, 4.5]

    def test_batch(self) -> None:
        """(1, 2, 3): mean 2, deviation 1 (n − 1 = 2)."""
        assert rl.batch_baseline(torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([-1, 0, 1], abs=2e-4)

    def test_an_unscored_completion_counts_in_no_mean(self) -> None:
        with_hole = torch.tensor([1.0, math.nan, 3.0, 2.0, 4.0, 9.0])
        scored = torch.tensor([True, False, True, True, True, True])
        grouped = rl.group_advantages(with_hole, 3, "none")
        assert grouped[~scored].isnan().all()
        assert grouped[scored].tolist() == [-1, 1, -3, -1, 4]
        assert rl.leave_one_out(with_hole, 3)[scored].tolist() == [-2, 2, -4.5, -1.5, 6]
        assert rl.batch_baseline(with_hole)[scored].equal(rl.batch_baseline(with_hole[scored]))
        assert rl.leave_one_out(torch.tensor([5.0, math.nan]), 2)[0].item() == 0


class TestPolicyLoss:
    def test_values(self) -> None:
        """w = 2, Â = 1, ε = .2: min(2, 1.2) = 1.2. w = 1/2, Â = 1: 1/2. w = 2, Â = −1: −2. w = 1/2, Â = −1: −0.8.

        Mean of −(1.2, .5, −2, −.8): 1.1/4 = 0.275. With ε_high = .5 the first is 1.5: 0.8/4 = 0.2.
        """
        ratios = torch.tensor([[2.0, 0.5, 2.0, 0.5]])
        advantages, mask = torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.ones(1, 4)
        found = rl.clipped_losses(ratios, advantages, clip_low=0.2, clip_high=0.2)
        assert found.losses.tolist() == [pytest.approx([-1.2, -0.5, 2, 0.8])]
        assert found.clipped.tolist() == [[True, False, False, True]]
        old = torch.zeros(1, 4)
        loss = rl.policy_loss(ratios.log(), old, advantages, mask, clip_low=0.2, clip_high=0.2)
        assert loss.item() == pytest.approx(0.275)
        loss = rl.policy_loss(ratios.log(), old, advantages, mask, clip_low=0.2, clip_high=0.5)
        assert loss.item() == pytest.approx(0.2)

    @pytest.mark.parametrize(
        ("ratio", "advantage", "pushed"),
        [
            (1.0, 1.0, -1.0),  # good: its probability rises, the loss falls by w·Â for each nat
            (1.0, -1.0, 1.0),  # bad: it falls
            (1.5, 1.0, 0.0),  # good and already 1 + ε more likely: enough
            (0.5, -1.0, 0.0),  # bad and already 1 − ε as likely: enough
            (1.5, -1.0, 1.5),  # bad, and more likely than before: back, without bound
            (0.5, 1.0, -0.5),  # good, and less likely than before: back
        ],
    )
    def test_gradient_signs_on_two_tokens(self, ratio: float, advantage: float, pushed: float) -> None:
        """d loss/d log π = −w·Â, 0 where clipped; through a softmax of two tokens: times (1 − π) and −π."""
        logits = torch.tensor([0.4, -0.2], requires_grad=True)
        chosen = logits.log_softmax(0)[:1].view(1, 1)
        old = (chosen - math.log(ratio)).detach()
        rl.policy_loss(
            chosen, old, torch.tensor([[advantage]]), torch.ones(1, 1), clip_low=0.2, clip_high=0.2
        ).backward()
        share = chosen.exp().item()
        assert logits.grad is not None
        assert logits.grad.tolist() == pytest.approx([pushed * (1 - share), -pushed * (1 - share)], abs=1e-6)

    def test_the_ratio_of_a_sequence_is_the_geometric_mean_of_its_tokens(self) -> None:
        """Ratios 2 and 8: √16 = 4 at both tokens; the token behind the mask does not count."""
        logps, mask = torch.tensor([[2.0, 8.0, 5.0]]).log(), torch.tensor([[1.0, 1.0, 0.0]])
        found = rl.importance(logps, torch.zeros(1, 3), mask, "sequence")
        assert found[0, :2].tolist() == pytest.approx([4, 4])

    def test_what_is_masked_sends_no_gradient(self) -> None:
        logps = torch.tensor([[0.1, 900.0]], requires_grad=True)  # e⁹⁰⁰ is infinite
        mask = torch.tensor([[1.0, 0.0]])
        loss = rl.policy_loss(logps, torch.zeros(1, 2), torch.ones(1, 2), mask, clip_low=0.2, clip_high=0.2)
        loss.backward()
        assert logps.grad is not None
        assert logps.grad[0].tolist() == pytest.approx([-math.exp(0.1), 0])

    @pytest.mark.parametrize("ratio", ["token", "sequence"])
    @pytest.mark.parametrize(("over", "theirs"), [("token", "bnpo"), ("completion", "grpo"), ("constant", "dr_grpo")])
    @pytest.mark.parametrize("beta", [0.0, 0.3])
    def test_trl_agrees(self, ratio: Any, over: Any, theirs: str, beta: float) -> None:
        """TRL's own loss method, given our log-probabilities instead of a model's; KL is k3 in the loss."""
        logps, old, ref, mask = drawn(0, B, T) / 3, drawn(1, B, T) / 3, drawn(2, B, T) / 3, ragged()
        advantages = drawn(3, B)
        logps.requires_grad_()
        expected = trl_loss(logps, old, ref, advantages, mask, theirs, ratio, beta)
        (their_gradient,) = torch.autograd.grad(expected, logps)
        found = rl.policy_loss(
            logps, old, advantages[:, None], mask, clip_low=0.2, clip_high=0.28, ratio=ratio, over=over, length=T
        ) + beta * rl.average(rl.kl_estimate(logps, ref, "k3"), mask, over, length=T)
        (gradient,) = torch.autograd.grad(found, logps)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, their_gradient)


def trl_loss(
    logps: torch.Tensor,
    old: torch.Tensor,
    ref: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    loss_type: str,
    ratio: str,
    beta: float,
) -> torch.Tensor:
    """``GRPOTrainer._compute_loss`` on a stand-in that has only what it reads."""
    trainer: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=SimpleNamespace(
            gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
        ),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=ratio,
        loss_type=loss_type,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.28,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        max_completion_length=T,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    inputs = {
        "prompt_ids": torch.zeros(B, 1),
        "prompt_mask": torch.ones(B, 1),
        "completion_ids": torch.zeros(B, T),
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
    }
    loss: torch.Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


class TestValueLoss:
    def test_values(self) -> None:
        """Old value 0, ε = .2, return 1. V = .1: (.9)²/2 = .405. V = .5: held at .2, (.8)²/2 = .32. V = −.5: 1.5²/2."""
        values = torch.tensor([[0.1, 0.5, -0.5]], requires_grad=True)
        old, returns = torch.zeros(1, 3), torch.ones(1, 3)
        found = rl.clipped_value_losses(values, old, returns, clip=0.2)
        assert found.losses.tolist() == [pytest.approx([0.405, 0.32, 1.125])]
        assert found.clipped.tolist() == [[False, True, False]]

    def test_gradient_signs(self) -> None:
        """d/dV = V − R, over two tokens of three: towards the return, but not where it went far enough."""
        values = torch.tensor([[0.1, 0.5, 7.0]], requires_grad=True)
        mask = torch.tensor([[1.0, 1.0, 0.0]])
        rl.value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), mask, clip=0.2).backward()
        assert values.grad is not None
        assert values.grad[0].tolist() == pytest.approx([-0.9 / 2, 0, 0])
