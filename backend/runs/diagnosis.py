"""What a run's points say in plain sentences, by rules. Few points, few sentences: nothing is said that is not measured.

Pure functions over points: no tables, no web. One function a rule; each answers a finding or nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from backend.intervals import Estimate, by_chance, wilson
from backend.runs.glossary import DECIDES
from backend.runs.meanings import bare, meaning

Series = Sequence[tuple[int, float]]
"""(step, value), by rising step; values may be NaN or infinite."""

ONLINE = frozenset({"ppo", "grpo"})
_LENGTH = ("eval_length_accuracy", "eval_longer_accuracy")
BASELINES = {
    "reward": ("eval_accuracy", _LENGTH),
    "attribute_reward": ("eval_pair_accuracy", _LENGTH),
    "process_reward": ("eval_solution_accuracy", ("eval_length_accuracy", "eval_solution_base_rate")),
    **dict.fromkeys(("dpo", "kto", "orpo", "simpo"), ("eval_rewards/accuracies", _LENGTH)),
}
"""What must be beaten to have learned more than the length of a text, or what most rows say."""
ALWAYS = {"process_reward": "eval_step_base_rate"}
"""What the deciding figure reaches by always saying the same: rising up to it is not learning."""
HOLDS = {
    "dpo": "A larger β, an SFT weight",
    "kto": "A larger β",
    "orpo": "A smaller weight of the odds",
    "simpo": "An SFT weight",
}
"""What keeps the likelihood of chosen texts, besides a smaller learning rate."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the diagnosis."""

    title: str
    text: str
    look: bool = False
    """Whether somebody should look."""


def diagnose(
    method: str, series: Mapping[str, Series], *, finished: bool, held_out_rows: int | None = None
) -> list[Finding]:
    """Everything that the rules say. With the number of held-out rows (ties are not among them: no share asks them) shares carry their interval."""
    sound = {key: [(s, v) for s, v in points if math.isfinite(v)] for key, points in series.items()}
    found = list(_not_numbers(series))
    found += _held_out(DECIDES[method], sound, finished, held_out_rows, ALWAYS.get(method))
    rules: list[Callable[[Mapping[str, Series]], Finding | None]] = []
    if method == "sft":
        rules.append(_by_heart)
    if method in HOLDS:
        rules.append(partial(_chosen_fall, HOLDS[method]))
    if method in BASELINES:
        rules.append(partial(_only_length, *BASELINES[method]))
    if method in ("reward", "attribute_reward", "process_reward"):
        rules.append(_badly_calibrated)
    if method in ONLINE:
        rules += [_gamed, _collapse, _at_the_limit, _no_spread, _unscored]
    if method == "ppo":
        rules.append(_blind_value)
    rules.append(_jump)
    return found + [said for rule in rules if (said := rule(sound)) is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _values(series: Mapping[str, Series], key: str) -> list[float]:
    return [value for _, value in series.get(key, [])]


def _ends(values: Sequence[float], share: int = 5) -> tuple[float, float]:
    """Means of the first and the last fifth."""
    n = max(1, len(values) // share)
    return _mean(values[:n]), _mean(values[-n:])


# --- for every method ----------------------------------------------------------------------------------------------


def _not_numbers(series: Mapping[str, Series]) -> Iterator[Finding]:
    for key, points in series.items():
        broken = [step for step, value in points if not math.isfinite(value)]
        if broken:
            yield Finding(
                "A value is not a number.",
                f"{meaning(key).name} was NaN or infinite at {len(broken)} steps, first at step {broken[0]}.",
                True,
            )


def _held_out(
    key: str, series: Mapping[str, Series], finished: bool, rows: int | None, always: str | None
) -> Iterator[Finding]:
    """Whether the deciding held-out figure moved, beyond what chance does to so many rows, and what *always* reaches."""
    points = series.get(key, [])
    known = meaning(key)
    name = f"Held-out {known.name.lower()}"
    # {} where an interval means nothing: no share of rows, or nobody said of how many
    sure = {step: _share(key, step, value, series, rows) for step, value in points} if known.of_rows and rows else {}

    def said(point: tuple[int, float]) -> str:
        step, value = point
        if (share := sure.get(step)) is None:
            return f"{_plain(value)} at step {step}"
        if share.low == share.high:
            return f"{_plain(value)} at step {step} (where the policy is its reference)"
        return f"{_plain(value)} [{_plain(share.low)}, {_plain(share.high)}] at step {step}"

    def chance(one: int, other: int) -> float:
        return by_chance(sure[one], sure[other]) if sure else 0.0

    of_rows = f" (95 % intervals, {rows:,} rows)" if sure else ""
    if len(points) == 1:
        hope = "" if finished else "; the next evaluation shows whether it learns"
        yield Finding("Measured once.", f"{name} was {said(points[0])}{of_rows}{hope}.")
    if len(points) < 2:
        return
    (first, before), (last, after) = points[0], points[-1]
    went = f"{name} went from {said(points[0])} to {said(points[-1])}"
    better = after < before if known.better == "lower" else after > before
    if abs(after - before) <= 0.01 * max(abs(before), abs(after), 1e-9):
        yield Finding("It stands still.", f"{went}{of_rows}.", finished)
    elif abs(after - before) <= chance(first, last):
        yield Finding(
            "Too few rows to tell.",
            f"{went}: with {rows:,} held-out rows, chance alone moves it by {_plain(chance(first, last))}.",
            finished,
        )
    elif better and always and (base := _values(series, always)) and after <= base[-1] + 1e-6:
        yield Finding(
            "It says what most are.", f"{went}, and always saying the same reaches {_plain(base[-1])}.", finished
        )
    elif better:
        yield Finding("It learns.", f"{went}{of_rows}.")
    else:
        yield Finding("It gets worse.", f"{went}{of_rows}.", True)
    if len(points) >= 4 and known.better in ("lower", "higher"):
        best = (min if known.better == "lower" else max)(points, key=lambda point: point[1])
        gained, lost = abs(best[1] - before), abs(after - best[1])
        if best[0] != last and gained > 0 and lost > max(0.25 * gained, chance(best[0], last)):
            yield Finding(
                "The best is behind it.",
                f"{name} was best at step {best[0]} ({_plain(best[1])}); a checkpoint from there may be better than the last.",
                True,
            )


def _share(key: str, step: int, value: float, series: Mapping[str, Series], rows: int) -> Estimate:
    """The share at *step* with its interval; with none where it is 1/2 by convention.

    Before the first step a policy is its own reference: every pair has a margin of exactly 0, and an accuracy that nothing
    was counted for.
    """
    if key == "eval_rewards/accuracies" and value == 0.5 and (step, 0.0) in series.get("eval_rewards/margins", ()):
        return Estimate(value, value, value, rows)
    share = wilson(value * rows, rows)
    assert share is not None
    return share


def _jump(series: Mapping[str, Series]) -> Finding | None:
    norms = _values(series, "grad_norm")
    if len(norms) < 12:
        return None
    middle = sorted(norms)[len(norms) // 2]
    if middle <= 0 or max(norms[-6:]) <= 10 * middle:
        return None
    return Finding(
        "A jump in the gradient.",
        f"Its norm reached {_plain(max(norms[-6:]))}, more than ten times its median of {_plain(middle)}; a smaller learning rate or more warm-up calms it.",
        True,
    )


# --- supervised and preference -------------------------------------------------------------------------------------


def _by_heart(series: Mapping[str, Series]) -> Finding | None:
    train, evaluated = series.get("loss", []), series.get("eval_loss", [])
    if len(train) < 8 or len(evaluated) < 4:
        return None
    low = min(evaluated, key=lambda point: point[1])
    rises = low[0] < evaluated[-1][0] and evaluated[-1][1] > 1.02 * low[1]
    falls = _mean([v for _, v in train[-4:]]) < _mean([v for s, v in train if s <= low[0]] or [0])
    if not (rises and falls):
        return None
    return Finding("It learns by heart.", f"Training loss still falls, held-out loss rises since step {low[0]}.", True)


def _chosen_fall(remedy: str, series: Mapping[str, Series]) -> Finding | None:
    # Held-out rows are the same at every evaluation; a training batch is likelier or not by the length of its texts alone.
    chosen = _values(series, "eval_logps/chosen")
    if len(chosen) < 2 or chosen[-1] >= chosen[0] - 0.1 * abs(chosen[0]):
        return None
    margins = _values(series, "eval_rewards/margins")
    grows = not margins or margins[-1] > margins[0]
    why = ": the margin grows by making both texts unlikely" if grows else ", and the margin does not grow with it"
    return Finding(
        "Watch the chosen texts.",
        f"Their held-out log-probability fell from {_plain(chosen[0])} to {_plain(chosen[-1])} nats{why}. {remedy} or a smaller learning rate holds them.",
        True,
    )


# --- reward models -------------------------------------------------------------------------------------------------


def _only_length(key: str, baselines: Sequence[str], series: Mapping[str, Series]) -> Finding | None:
    mine = _values(series, key)
    others = [(values[-1], meaning(other).name.lower()) for other in baselines if (values := _values(series, other))]
    if len(mine) < 2 or not others or mine[-1] > max(others)[0]:
        return None
    best, name = max(others)
    return Finding(
        "It is no better than its baseline.",
        f"Held-out {meaning(key).name.lower()} is {_plain(mine[-1])}, and {name} reaches {_plain(best)} without reading. More rows, or rows of equal length, teach it something else.",
        True,
    )


def _badly_calibrated(series: Mapping[str, Series]) -> Finding | None:
    errors, temperature = _values(series, "eval_ece"), _values(series, "eval_temperature")
    if len(errors) < 2 or errors[-1] < 0.1:
        return None
    remedy = "more held-out rows show whether it is chance"
    if temperature:
        too = "sure" if temperature[-1] > 1 else "unsure"
        remedy = f"it is too {too}: divide its rewards by {_plain(temperature[-1])}"
    return Finding(
        "Its probabilities are off.",
        f"Held-out calibration error is {_plain(errors[-1])}: what it calls 80 % is right {100 * (0.8 - errors[-1]):.0f} or {100 * min(1.0, 0.8 + errors[-1]):.0f} % of the time; {remedy}.",
        True,
    )


# --- reinforcement learning ----------------------------------------------------------------------------------------


def _gamed(series: Mapping[str, Series]) -> Finding | None:
    rewards, divergence = _values(series, "reward"), _values(series, "kl")
    if len(rewards) < 20 or len(divergence) < 20:
        return None
    (reward_0, reward_1), (kl_0, kl_1) = _ends(rewards), _ends(divergence)
    held_out = _values(series, "eval_reward")
    if reward_1 <= reward_0 or kl_1 < 0.5 or kl_1 < 5 * max(kl_0, 0.01):
        return None
    both = f" Held-out reward went to {_plain(held_out[-1])}." if held_out else ""
    return Finding(
        "The reward may be gamed.",
        f"It rises from {_plain(reward_0)} to {_plain(reward_1)} while the divergence from the reference rises from {_plain(kl_0)} to {_plain(kl_1)} nats a token.{both} Read the completions; a larger β or a second reward holds it.",
        True,
    )


def _collapse(series: Mapping[str, Series]) -> Finding | None:
    entropy = _values(series, "entropy")
    if len(entropy) < 20:
        return None
    first, final = _ends(entropy)
    if first <= 0 or final > 0.15 * first:
        return None
    return Finding(
        "The policy has stopped exploring.",
        f"Its entropy fell from {_plain(first)} to {_plain(final)} nats a token: completions of a prompt are nearly the same. A smaller learning rate, a higher upper clip or a larger β keeps them apart.",
        True,
    )


def _at_the_limit(series: Mapping[str, Series]) -> Finding | None:
    cut = _values(series, "completions/clipped_ratio")
    if len(cut) < 10:
        return None
    first, final = _ends(cut)
    if final < 0.2 or final < first + 0.1:
        return None
    lengths = _values(series, "completions/mean_length")
    grown = f" Their mean length grew from {_plain(lengths[0])} to {_plain(lengths[-1])} tokens." if lengths else ""
    return Finding(
        "Completions grow to the limit.",
        f"{_plain(100 * final)} % are cut, at the beginning {_plain(100 * first)} %.{grown} Give them more tokens, or a length or overlong term.",
        True,
    )


def _no_spread(series: Mapping[str, Series]) -> Finding | None:
    dead = _values(series, "frac_reward_zero_std")
    if len(dead) < 4:
        return None
    share = _ends(dead)[1]
    if share < 0.5:
        return None
    return Finding(
        "Most groups teach nothing.",
        f"In {_plain(100 * share)} % of the groups all completions score the same. Prompts that are neither always nor never solved help, and so does resampling (groups: resample).",
        True,
    )


def _unscored(series: Mapping[str, Series]) -> Finding | None:
    worst: tuple[float, str] | None = None
    for key in series:
        if bare(key) != key or not (key == "unscored" or key.endswith("/unscored")):
            continue
        share = _ends(_values(series, key))[1] if series[key] else 0
        if share > 0.05 and (worst is None or share > worst[0]):
            worst = share, meaning(key).name
    if worst is None:
        return None
    return Finding(
        "Some completions are not scored.",
        f"{worst[1]}: {_plain(100 * worst[0])} %. They leave the loss; the log says what the component could not answer.",
        True,
    )


def _blind_value(series: Mapping[str, Series]) -> Finding | None:
    explained = _values(series, "val/explained_variance")
    if len(explained) < 20:
        return None
    late = explained[len(explained) // 2 :]
    if sum(value < 0 for value in late) < 0.8 * len(late):
        return None
    return Finding(
        "The value model misleads.",
        f"Its explained variance is below 0 in most of the later steps, now {_plain(explained[-1])}: advantages are noisier than without it. A larger value weight, a value model of its own or a smaller λ helps.",
        True,
    )
