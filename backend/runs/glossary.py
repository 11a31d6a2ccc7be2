"""What a run's numbers mean: sentence, formula, unit, direction; and which charts decide about each method.

The keys are TRL's, exactly. A key that is not here is still charted, under its own name and without an explanation.
Pure data: no tables, no web.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "steady", "neither"]


@dataclass(frozen=True)
class Meaning:
    """One metric in words."""

    name: str
    text: str
    formula: str = ""
    unit: str = ""
    better: Better = "neither"
    low: float | None = None
    high: float | None = None
    """Bounds of the value itself, if it has any: a share lies in 0 … 1."""


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


MEANINGS: dict[str, Meaning] = {
    "loss": Meaning(
        "Loss",
        "What the optimizer lowers, averaged over the rows of the logged steps.",
        "see the spec's loss",
        "nats",
        "lower",
    ),
    "grad_norm": Meaning("Gradient norm", "Length of the gradient before it is clipped.", "‖∇L‖₂", "", "steady"),
    "learning_rate": Meaning("Learning rate", "The step size the schedule gave.", "", "", "neither"),
    "epoch": Meaning("Epoch", "How often the training rows have been seen.", "rows read / rows", "passes", "neither"),
    "entropy": Meaning(
        "Entropy",
        "Mean entropy of the model's next-token distribution over the trained tokens.",
        "−Σ π log π",
        "nats per token",
        "steady",
    ),
    "num_tokens": Meaning("Tokens", "Tokens read so far.", "", "tokens", "neither"),
    "mean_token_accuracy": Meaning(
        "Token accuracy",
        "Share of trained tokens that the model would have chosen itself.",
        "mean(argmax π = token)",
        "share",
        "higher",
        0,
        1,
    ),
    "rewards/chosen": Meaning(
        "Implicit reward, chosen",
        "β times how much likelier the chosen text became than under the reference.",
        "β·log(π/π_ref)",
        "",
        "higher",
    ),
    "rewards/rejected": Meaning(
        "Implicit reward, rejected", "The same for the rejected text.", "β·log(π/π_ref)", "", "lower"
    ),
    "rewards/margins": Meaning(
        "Margin", "By how much the implicit reward prefers the chosen text.", "r(chosen) − r(rejected)", "", "higher"
    ),
    "rewards/accuracies": Meaning(
        "Accuracy",
        "Share of pairs in which the chosen text has the higher implicit reward; 0.5 is a coin, and where it begins.",
        "mean(r(chosen) > r(rejected))",
        "share",
        "higher",
        0,
        1,
    ),
    "logps/chosen": Meaning(
        "Log-probability, chosen",
        "How likely the model finds the chosen texts, summed over tokens.",
        "log π(chosen | prompt)",
        "nats",
        "higher",
    ),
    "logps/rejected": Meaning(
        "Log-probability, rejected",
        "How likely the model finds the rejected texts.",
        "log π(rejected | prompt)",
        "nats",
        "neither",
    ),
    "logits/chosen": Meaning("Logits, chosen", "Mean logit over the tokens of the chosen texts.", "", "", "neither"),
    "logits/rejected": Meaning(
        "Logits, rejected", "Mean logit over the tokens of the rejected texts.", "", "", "neither"
    ),
    "accuracy": Meaning(
        "Accuracy",
        "Share of pairs in which the reward model scores the chosen text higher; 0.5 is a coin.",
        "mean(r(chosen) > r(rejected))",
        "share",
        "higher",
        0,
        1,
    ),
    "margin": Meaning(
        "Margin",
        "By how much the chosen text scores higher, on average.",
        "mean(r(chosen) − r(rejected))",
        "",
        "higher",
    ),
    "mean_reward": Meaning(
        "Mean reward",
        "Mean score over chosen and rejected texts; centering keeps it near zero.",
        "mean(r)",
        "",
        "steady",
    ),
    "min_reward": Meaning("Lowest reward", "Lowest score of the batch.", "min(r)", "", "neither"),
    "max_reward": Meaning("Highest reward", "Highest score of the batch.", "max(r)", "", "neither"),
    "step_time": Meaning("Seconds a step", "Wall clock of one optimizer step on the worker.", "", "seconds", "lower"),
}

DECISIVE: dict[str, tuple[Chart, ...]] = {
    "sft": (
        Chart("Loss", (("loss", "training"), ("eval_loss", "held out")), wide=True),
        Chart("Token accuracy", (("mean_token_accuracy", "training"), ("eval_mean_token_accuracy", "held out"))),
        Chart("Entropy", (("entropy", "training"), ("eval_entropy", "held out"))),
        Chart("Gradient norm", (("grad_norm", ""),)),
        Chart("Learning rate", (("learning_rate", ""),)),
    ),
    "reward": (
        Chart("Accuracy", (("accuracy", "training"), ("eval_accuracy", "held out")), wide=True),
        Chart("Margin", (("margin", "training"), ("eval_margin", "held out"))),
        Chart("Rewards", (("max_reward", "highest"), ("mean_reward", "mean"), ("min_reward", "lowest"))),
        Chart("Loss", (("loss", "training"), ("eval_loss", "held out"))),
        Chart("Gradient norm", (("grad_norm", ""),)),
    ),
    "dpo": (
        Chart("Accuracy", (("rewards/accuracies", "training"), ("eval_rewards/accuracies", "held out")), wide=True),
        Chart("Margin", (("rewards/margins", "training"), ("eval_rewards/margins", "held out"))),
        Chart("Chosen and rejected", (("logps/chosen", "chosen"), ("logps/rejected", "rejected"))),
        Chart("Implicit rewards", (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected"))),
        Chart("Loss", (("loss", "training"), ("eval_loss", "held out"))),
    ),
}

DECIDES: dict[str, str] = {"sft": "eval_loss", "reward": "eval_accuracy", "dpo": "eval_rewards/accuracies"}
"""The one held-out metric by which runs of a method are compared in a list: before → after."""


def bare(key: str) -> str:
    """The metric without the ``eval_`` of held-out rows."""
    return key.removeprefix("eval_")


def meaning(key: str) -> Meaning:
    """What *key* means; an unknown one keeps its own name."""
    known = MEANINGS.get(bare(key))
    if known is None:
        return Meaning(bare(key), "The recipe logs this value under its own name; the studio knows no more about it.")
    return known


def is_held_out(key: str) -> bool:
    """Whether the value was measured on held-out rows."""
    return key.startswith("eval_")


def grouped(keys: Iterable[str]) -> list[tuple[str, list[Chart]]]:
    """All *keys* as charts, training and held-out values of a metric in one figure, grouped by the prefix before ``/``."""
    together: dict[str, list[str]] = {}
    for key in sorted(keys):
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
    order = ["general", "rewards", "logps", "logits"]
    return sorted(
        groups.items(), key=lambda group: (order.index(group[0]) if group[0] in order else len(order), group[0])
    )


@dataclass(frozen=True)
class Finding:
    """One sentence of the diagnosis."""

    title: str
    text: str
    look: bool = False
    """Whether somebody should look."""


Series = Sequence[tuple[int, float]]
"""(step, value), by rising step; values may be NaN or infinite."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def diagnose(method: str, series: dict[str, Series], *, finished: bool) -> list[Finding]:
    """Plain sentences from rules over the points so far. Few points, few sentences: nothing is said that is not measured."""
    found: list[Finding] = []
    for key, points in series.items():
        broken = [step for step, value in points if value != value or value in (float("inf"), float("-inf"))]
        if broken:
            found.append(
                Finding(
                    "A value is not a number.",
                    f"{meaning(key).name} was NaN or infinite at {len(broken)} steps, first at step {broken[0]}.",
                    True,
                )
            )
    sound = {key: [(s, v) for s, v in points if v == v and abs(v) != float("inf")] for key, points in series.items()}

    key = DECIDES[method]
    held_out = sound.get(key, [])
    known = meaning(key)
    if len(held_out) >= 2:
        before, after = held_out[0][1], held_out[-1][1]
        better = after < before if known.better == "lower" else after > before
        name = f"Held-out {known.name.lower()}"
        if abs(after - before) <= 0.01 * max(abs(before), abs(after), 1e-9):
            found.append(
                Finding("It stands still.", f"{name} went from {_plain(before)} to {_plain(after)}.", finished)
            )
        elif better:
            found.append(
                Finding(
                    "It learns.",
                    f"{name} went from {_plain(before)} at step {held_out[0][0]} to {_plain(after)} at step {held_out[-1][0]}.",
                )
            )
        else:
            found.append(Finding("It gets worse.", f"{name} went from {_plain(before)} to {_plain(after)}.", True))
        if len(held_out) >= 4 and known.better in ("lower", "higher"):
            best = (min if known.better == "lower" else max)(held_out, key=lambda point: point[1])
            lost = abs(after - best[1])
            if best[0] != held_out[-1][0] and lost > 0.25 * abs(best[1] - before) and abs(best[1] - before) > 0:
                found.append(
                    Finding(
                        "The best is behind it.",
                        f"{name} was best at step {best[0]} ({_plain(best[1])}); a checkpoint from there may be better than the last.",
                        True,
                    )
                )
    elif held_out:
        found.append(
            Finding(
                "Measured once.",
                f"Held-out {known.name.lower()} was {_plain(held_out[0][1])} at step {held_out[0][0]}; the next evaluation shows whether it learns.",
            )
        )

    train, evaluated = sound.get("loss", []), sound.get("eval_loss", [])
    if method == "sft" and len(train) >= 8 and len(evaluated) >= 4:
        low = min(evaluated, key=lambda point: point[1])
        if (
            low[0] < evaluated[-1][0]
            and evaluated[-1][1] > 1.02 * low[1]
            and _mean([v for _, v in train[-4:]]) < _mean([v for s, v in train if s <= low[0]] or [0])
        ):
            found.append(
                Finding(
                    "It learns by heart.", f"Training loss still falls, held-out loss rises since step {low[0]}.", True
                )
            )

    # Held-out rows are the same at every evaluation; a training batch is likelier or not by the length of its texts alone.
    chosen = sound.get("eval_logps/chosen", [])
    if method == "dpo" and len(chosen) >= 2:
        first, final = chosen[0][1], chosen[-1][1]
        if final < first - 0.1 * abs(first):
            found.append(
                Finding(
                    "Watch the chosen texts.",
                    f"Their held-out log-probability fell from {_plain(first)} to {_plain(final)} nats: the margin grows by making both texts unlikely. A larger β or an SFT weight holds them.",
                    True,
                )
            )
    norms = [v for _, v in sound.get("grad_norm", [])]
    if len(norms) >= 12:
        middle = sorted(norms)[len(norms) // 2]
        if middle > 0 and max(norms[-6:]) > 10 * middle:
            found.append(
                Finding(
                    "A jump in the gradient.",
                    f"Its norm reached {_plain(max(norms[-6:]))}, ten times its median of {_plain(middle)}; a smaller learning rate or more warm-up calms it.",
                    True,
                )
            )
    return found
