"""Specs for the demo project's model: each takes about a minute on one busy core and visibly improves what is held out."""

from backend.runs.specs import (
    IPO,
    Adapter,
    AttributeRewardSpec,
    BatchBaseline,
    Checkpoints,
    DPOSpec,
    Evaluation,
    FixedBeta,
    FullWeights,
    GroupAdvantage,
    GRPOSpec,
    Hinge,
    KLPenalty,
    KTOSpec,
    LeaveOneOut,
    LoRA,
    Optimization,
    ORPOSpec,
    PPOSpec,
    ProcessRewardSpec,
    Resample,
    RewardSpec,
    Robust,
    Sampling,
    ScoreCare,
    SFTSpec,
    Sigmoid,
    SimPOSpec,
    Weights,
)
from backend.runs.specs.rewards import NumericAnswer, PatternFormat, RewardModelScore, Rewards, SoftOverlong

_MAX_LENGTH = 128
"""The demo's longest row has 60 tokens."""


def _common(base_model: int, dataset: int, seed: int, every: int, weights: Weights | None) -> dict[str, object]:
    return {
        "base_model": base_model,
        "dataset": dataset,
        "seed": seed,
        "max_length": _MAX_LENGTH,
        "weights": weights or FullWeights(),
        "evaluation": Evaluation(every_steps=every, max_rows=128, completions=8, max_new_tokens=48),
        "checkpoints": Checkpoints(every_steps=every),
    }


def sft(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> SFTSpec:
    """Imitate demonstrations: sums are worked out, replies are polite."""
    rate = 5e-3 if isinstance(weights, LoRA) else 5e-4
    return SFTSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=80, batch_size=32, learning_rate=rate, warmup_steps=5),
    )


def reward(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> RewardSpec:
    """Score completions as the annotators did."""
    rate = 2e-3 if isinstance(weights, LoRA) else 5e-4
    return RewardSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=60, batch_size=32, learning_rate=rate, warmup_steps=5),
        centering=0.01,
    )


def dpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None, beta: float = 0.5) -> DPOSpec:
    """Prefer what the annotators preferred; the added likelihood keeps the text well-formed."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return DPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        loss=Sigmoid(sft_weight=1.0),
        beta=beta,
    )


def ipo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None, beta: float = 5.0) -> DPOSpec:
    """The same pairs with a loss that does not push a settled preference further."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return DPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        loss=IPO(),
        beta=beta,
    )


def hinge(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> DPOSpec:
    """The same pairs, each left alone once its margin is large enough."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return DPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        loss=Hinge(),
        beta=0.5,
    )


def robust(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> DPOSpec:
    """The same pairs as if one in ten were flipped."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return DPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        loss=Robust(label_smoothing=0.1),
        beta=0.5,
    )


def soft_dpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> DPOSpec:
    """Pairs with the share of annotators that preferred the chosen side; ties pull the margin to zero."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return DPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        loss=Sigmoid(sft_weight=1.0),
        beta=0.5,
        use_probability=True,
        reference="before",
    )


def kto(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> KTOSpec:
    """Learn from thumbs instead of pairs."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return KTOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=120, batch_size=32, learning_rate=rate, warmup_steps=5),
        beta=1.0,
    )


def orpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> ORPOSpec:
    """Imitate what was chosen and part it from what was rejected, in one loss and without a second model."""
    rate = 2e-3 if isinstance(weights, LoRA) else 3e-4
    return ORPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=120, batch_size=32, learning_rate=rate, warmup_steps=5),
        odds_weight=0.3,
    )


def simpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> SimPOSpec:
    """Pairs by the mean log-probability of their tokens; the added likelihood keeps the text well-formed."""
    rate = 1e-3 if isinstance(weights, LoRA) else 2e-4
    return SimPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=120, batch_size=32, learning_rate=rate, warmup_steps=5),
        beta=2.0,
        gamma=0.5,
        sft_weight=0.5,
    )


def reward_soft(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> RewardSpec:
    """Score completions as most of several annotators did, and as surely as they agreed."""
    return reward(base_model, dataset, seed=seed, weights=weights).model_copy(update={"use_probability": True})


def attribute_reward(
    base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None
) -> AttributeRewardSpec:
    """Score politeness, correctness and detail by themselves; detail is measured, and adds nothing to the reward."""
    rate = 2e-3 if isinstance(weights, LoRA) else 1e-3
    return AttributeRewardSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=32, learning_rate=rate, warmup_steps=5),
        attributes={"politeness": 1.0, "correctness": 2.0, "detail": 0.0},
    )


def process_reward(
    base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None
) -> ProcessRewardSpec:
    """See in which step a sum goes wrong."""
    rate = 5e-3 if isinstance(weights, LoRA) else 1e-3
    return ProcessRewardSpec(
        **_common(base_model, dataset, seed, 30, weights),
        optimization=Optimization(steps=150, batch_size=64, learning_rate=rate, warmup_steps=10),
        separator=".",
    )


def ppo(base_model: int, dataset: int, *, reward_model: int, seed: int = 0, weights: Weights | None = None) -> PPOSpec:
    """Write what the reward model likes, without leaving the base model further than that is worth."""
    rate = 2e-3 if isinstance(weights, Adapter) else 1e-4
    return PPOSpec(
        **_common(base_model, dataset, seed, 20, weights),
        optimization=Optimization(steps=100, batch_size=64, learning_rate=rate, schedule="constant", warmup_steps=3),
        rewards=Rewards(components=[RewardModelScore(models=[reward_model])]),
        sampling=Sampling(max_new_tokens=48),
        scores=ScoreCare(missing_end_penalty=1),
        epochs=2,
        kl=KLPenalty(beta=FixedBeta(beta=0.1), place="reward", estimator="k1"),
    )


# --- the GRPO family: sums with known answers ------------------------------------------------------------------------


def grpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None, **more: object) -> GRPOSpec:
    """Find out that working a sum out pays: eight tries each, compared with each other. *more*: what a variant changes."""
    rate = 2e-3 if isinstance(weights, Adapter) else 1e-4
    common = {
        **_common(base_model, dataset, seed, 20, weights),
        "optimization": Optimization(steps=80, batch_size=64, learning_rate=rate, schedule="constant", warmup_steps=3),
        "rewards": Rewards(components=[NumericAnswer()]),
        "sampling": Sampling(max_new_tokens=40),
        "group_size": 8,
    }
    return GRPOSpec(**{**common, **more})


def dr_grpo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """The same without dividing by a deviation or a length, which favor easy prompts and short answers."""
    return grpo(
        base_model,
        dataset,
        seed=seed,
        weights=weights,
        advantage=GroupAdvantage(scale="none"),
        average="constant",
        clip_high=0.2,
    )


def dapo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """All four repairs: clip higher, groups with spread only, every token alike, and care with what has no end."""
    return grpo(
        base_model,
        dataset,
        seed=seed,
        weights=weights,
        rewards=Rewards(components=[NumericAnswer(), SoftOverlong(buffer=8)]),
        clip_high=0.28,
        average="token",
        groups=Resample(max_rounds=4),
        drop_unfinished=True,
    )


def gspo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """One ratio for each completion; two steps on every rollout, so that it has something to say."""
    return grpo(
        base_model,
        dataset,
        seed=seed,
        weights=weights,
        ratio="sequence",
        average="completion",
        clip_low=3e-4,
        clip_high=4e-4,
        batches_per_rollout=2,
    )


def rloo(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """Each try against the mean of the others; what leaving the base model costs is taken from the reward."""
    return grpo(
        base_model,
        dataset,
        seed=seed,
        weights=weights,
        advantage=LeaveOneOut(),
        average="completion",
        group_size=4,
        kl=KLPenalty(beta=FixedBeta(beta=0.02), place="reward", estimator="k1"),
    )


def reinforce(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """Every try against the mean of the whole batch."""
    return grpo(base_model, dataset, seed=seed, weights=weights, advantage=BatchBaseline(), clip_high=0.2)


def r1_zero(base_model: int, dataset: int, *, seed: int = 0, weights: Weights | None = None) -> GRPOSpec:
    """No demonstrations at all: a reward for showing the work and one for being right, on the base model as it is."""
    worked = PatternFormat(name="format", weight=0.5, pattern=r"Ones: .+ Tens: .+ Answer: \d+\.")
    return grpo(
        base_model,
        dataset,
        seed=seed,
        weights=weights,
        rewards=Rewards(components=[worked, NumericAnswer(name="accuracy", answer="after_marker")]),
    )
