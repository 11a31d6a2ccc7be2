"""Specs for the demo project's model: each takes about a minute on one busy core and visibly improves what is held out."""

from backend.runs.specs import (
    IPO,
    Checkpoints,
    DPOSpec,
    Evaluation,
    FullWeights,
    LoRA,
    Optimization,
    RewardSpec,
    SFTSpec,
    Sigmoid,
    Weights,
)

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
