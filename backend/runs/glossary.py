"""Which charts decide about each method, and how all of a run's numbers are grouped. Pure data: no tables, no web."""

from collections.abc import Iterable
from dataclasses import dataclass

from backend.runs.meanings import Meaning, bare, is_held_out, meaning


@dataclass(frozen=True)
class Chart:
    """Several metrics in one figure; the first names its unit and direction."""

    title: str
    keys: tuple[tuple[str, str], ...]
    """(metric, label at the line)."""
    wide: bool = False

    @property
    def meaning(self) -> Meaning:
        """What the first line means."""
        return meaning(self.keys[0][0])


_LOSS = Chart("Loss", (("loss", "training"), ("eval_loss", "held out")))
_GRADIENT = Chart("Gradient norm", (("grad_norm", ""),))
_PAIRS = (
    Chart(
        "Accuracy",
        (
            ("rewards/accuracies", "training"),
            ("eval_rewards/accuracies", "held out"),
            ("eval_length_accuracy", "length only"),
        ),
        wide=True,
    ),
    Chart("Margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held out"))),
)
_TEXTS = Chart("Chosen and rejected", (("logps/chosen", "chosen"), ("logps/rejected", "rejected")))
_IMPLICIT = Chart("Implicit rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")))
_LENGTH = Chart("Length", (("completions/mean_length", "training"), ("eval_completions/mean_length", "held out")))
_CUT = Chart(
    "Cut at the limit", (("completions/clipped_ratio", "training"), ("eval_completions/clipped_ratio", "held out"))
)
_ENTROPY = Chart("Entropy", (("entropy", ""),))
_DIVERGENCE = Chart("Divergence from the reference", (("kl", "training"), ("eval_kl", "held out")))

DECISIVE: dict[str, tuple[Chart, ...]] = {
    "sft": (
        Chart("Loss", _LOSS.keys, wide=True),
        Chart("Token accuracy", (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held out"))),
        Chart("Entropy", (("entropy", "training"), ("eval_entropy", "held out"))),
        _GRADIENT,
        Chart("Learning rate", (("learning_rate", ""),)),
    ),
    "reward": (
        Chart(
            "Accuracy",
            (("accuracy", "training"), ("eval_accuracy", "held out"), ("eval_length_accuracy", "length only")),
            wide=True,
        ),
        Chart("Margin", (("margin", "training"), ("eval_margin", "held out"))),
        Chart("Calibration error", (("eval_ece", ""),)),
        Chart("Rewards", (("max_reward", "highest"), ("mean_reward", "mean"), ("min_reward", "lowest"))),
        _LOSS,
    ),
    "attribute_reward": (
        Chart("Loss", _LOSS.keys, wide=True),
        Chart("Pair accuracy", (("eval_pair_accuracy", "held out"), ("eval_length_accuracy", "length only"))),
        Chart("Calibration error", (("eval_ece", ""),)),
        Chart("Reward and length", (("eval_length_correlation", ""),)),
        _GRADIENT,
    ),
    "process_reward": (
        Chart(
            "Step accuracy", (("eval_step_accuracy", "held out"), ("eval_step_base_rate", "always the same")), wide=True
        ),
        Chart("Wrong steps found", (("eval_wrong_found", ""),)),
        Chart(
            "Solution accuracy",
            (("eval_solution_accuracy", "held out"), ("eval_solution_base_rate", "always the same")),
        ),
        Chart("Calibration error", (("eval_ece", ""),)),
        _LOSS,
    ),
    "dpo": (*_PAIRS, _TEXTS, _IMPLICIT, _LOSS),
    "kto": (
        Chart("Margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held out")), wide=True),
        _IMPLICIT,
        _DIVERGENCE,
        _TEXTS,
        _LOSS,
    ),
    "orpo": (
        *_PAIRS,
        _TEXTS,
        Chart("Imitation loss", (("nll_loss", "training"), ("eval_nll_loss", "held out"))),
        _LOSS,
    ),
    "simpo": (*_PAIRS, _TEXTS, _IMPLICIT, _LOSS),
    "ppo": (
        Chart("Reward", (("reward", "training"), ("eval_reward", "held out")), wide=True),
        _DIVERGENCE,
        Chart("Explained variance of the value", (("val/explained_variance", ""),)),
        Chart("Value loss", (("loss/value", ""),)),
        Chart("Clipped", (("policy/clipfrac", ""),)),
        _ENTROPY,
        _LENGTH,
        _CUT,
    ),
    "grpo": (
        Chart("Reward", (("reward", "training"), ("eval_reward", "held out")), wide=True),
        Chart("Groups without spread", (("frac_reward_zero_std", ""),)),
        Chart("Spread of the reward", (("reward_std", ""),)),
        _DIVERGENCE,
        _ENTROPY,
        _LENGTH,
        _CUT,
    ),
}

DECIDES: dict[str, str] = {
    "sft": "eval_loss",
    "reward": "eval_accuracy",
    "attribute_reward": "eval_loss",
    "process_reward": "eval_step_accuracy",
    "dpo": "eval_rewards/accuracies",
    "kto": "eval_rewards/margins",
    "orpo": "eval_rewards/accuracies",
    "simpo": "eval_rewards/accuracies",
    "ppo": "eval_reward",
    "grpo": "eval_reward",
}
"""The one held-out metric by which runs of a method are compared in a list: before → after."""

MOST_LINES = 8
"""There are so many colors."""


def decisive(method: str, keys: Iterable[str]) -> list[Chart]:
    """The charts that decide about a run of *method* that measured *keys*: with several rewards, each by itself too."""
    charts = list(DECISIVE[method])
    parts = sorted(key for key in keys if key.startswith("rewards/") and key.endswith("/mean"))
    if len(parts) > 1:
        lines = tuple((key, key.split("/")[1]) for key in parts[:MOST_LINES])
        charts.insert(1, Chart("Rewards by component", lines))
    attributes = sorted(key for key in keys if key.startswith("eval_pearson/"))
    if attributes:
        lines = tuple((key, key.partition("/")[2]) for key in attributes[:MOST_LINES])
        charts.insert(1, Chart("Correlation by attribute", lines))
    return charts


def grouped(keys: Iterable[str]) -> list[tuple[str, list[Chart]]]:
    """All *keys* as charts but for the reliability diagram's, training and held-out values of a metric in one figure, grouped by the prefix before ``/``."""
    together: dict[str, list[str]] = {}
    for key in sorted(key for key in keys if not bare(key).startswith("reliability/")):
        together.setdefault(bare(key), []).append(key)
    groups: dict[str, list[Chart]] = {}
    for name, members in together.items():
        prefix = (
            name.split("/")[0] if "/" in name else ("speed" if name.endswith(("time", "_per_second")) else "general")
        )
        lines = tuple((key, "held out" if is_held_out(key) else "training") for key in sorted(members, key=is_held_out))
        known = meaning(name)
        title = known.name if known.name != name else name.removeprefix(f"{prefix}/").replace("_", " ").capitalize()
        groups.setdefault(prefix, []).append(Chart(title, lines))
    order = ["general", "rewards", "objective", "policy", "val", "loss", "completions", "logps", "logits"]
    return sorted(
        groups.items(), key=lambda group: (order.index(group[0]) if group[0] in order else len(order), group[0])
    )
