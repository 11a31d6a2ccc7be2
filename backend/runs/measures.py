"""What a run's numbers mean: sentence, formula, unit, direction.

The keys are TRL's, exactly, and ours where TRL has none. A key that is not here is still charted, under its own name and
without an explanation. Pure data: no tables, no web.
"""

import re
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
    of_rows: bool = False
    """Whether it is a share of rows, so that their number says how far chance alone moves it."""


def _share(name: str, text: str, formula: str = "", better: Better = "higher", *, of_rows: bool = False) -> Meaning:
    return Meaning(name, text, formula, "share", better, 0, 1, of_rows)


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
        of_rows=True,
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
        of_rows=True,
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
    # --- preference losses
    "nll_loss": Meaning(
        "Imitation loss",
        "The part of the loss that imitates the chosen texts.",
        "−log π(chosen | prompt) per token",
        "nats",
        "lower",
    ),
    "log_odds_ratio": Meaning(
        "Log odds ratio",
        "log σ of how much likelier, in odds, the chosen text is than the rejected one; 0 is the best there is.",
        "log σ(log odds(chosen)/odds(rejected))",
        "nats",
        "higher",
    ),
    "log_odds_chosen": Meaning(
        "Log odds, chosen over rejected",
        "By how much the odds of the chosen text exceed those of the rejected one.",
        "log odds(chosen)/odds(rejected)",
        "nats",
        "higher",
    ),
    # --- reward models
    "ece": Meaning(
        "Calibration error",
        "How far the stated probabilities lie from what happens: 0.1 means that 80 % sure is right 70 or 90 % of the time.",
        "Σ share of bin · |accuracy − confidence|",
        "share",
        "lower",
        0,
        1,
    ),
    "brier": Meaning(
        "Brier score",
        "Mean squared distance of the stated probability from what happened; a coin that knows it has 0.25.",
        "mean((p − outcome)²)",
        "",
        "lower",
        0,
        1,
    ),
    "temperature": Meaning(
        "Temperature",
        "What rewards are to be divided by so that their probabilities are right; above 1 the model is too sure.",
        "argmin_T −Σ log σ(margin/T)",
        "",
        "neither",
    ),
    "nll": Meaning(
        "Log-loss of the probabilities",
        "How surprised the stated probabilities are by what happened; a coin that knows it has 0.693.",
        "−mean(p·log σ(d) + (1−p)·log σ(−d))",
        "nats",
        "lower",
    ),
    "nll_calibrated": Meaning(
        "Log-loss at the best temperature",
        "What is left once the rewards are divided by the temperature.",
        "",
        "nats",
        "lower",
    ),
    "length_accuracy": _share(
        "Length-only baseline",
        "What a judge gets right that reads nothing and only measures length; no better than that, and a model has learned length.",
        better="neither",
        of_rows=True,
    ),
    "longer_accuracy": _share(
        "The longer one wins", "Share of pairs whose better text is the longer one.", better="neither", of_rows=True
    ),
    "length_nll": Meaning(
        "Log-loss of the length-only baseline",
        "How surprised a judge is that only measures length.",
        "",
        "nats",
        "neither",
    ),
    "length_correlation": Meaning(
        "Reward and length",
        "Correlation of the reward with the number of tokens; far from 0 the model likes (or hates) length.",
        "Pearson ρ(r, tokens)",
        "",
        "steady",
        -1,
        1,
    ),
    "step_accuracy": _share(
        "Step accuracy",
        "Share of steps that are judged right or wrong as their label says.",
        "mean((p > ½) = label)",
    ),
    "solution_accuracy": _share(
        "Solution accuracy",
        "Share of solutions, those cut off before a verdict left out, whose reduced score says rightly whether every step is right.",
        "mean((reduced > ½) = all labels)",
        of_rows=True,
    ),
    "step_base_rate": _share(
        "Always the same answer", "What a judge of steps gets right that always says what most are.", better="neither"
    ),
    "wrong_found": _share("Wrong steps found", "Share of the wrong steps that are called wrong."),
    "first_error_accuracy": _share(
        "First mistake found",
        "Share of solutions whose first wrong step, or that there is none, is found.",
        of_rows=True,
    ),
    "first_error_base_rate": _share(
        "Always the same place",
        "What a judge gets right that always names the same step.",
        better="neither",
        of_rows=True,
    ),
    "solution_base_rate": _share(
        "Always the same verdict",
        "What a judge of the same solutions gets right that always says what most are.",
        better="neither",
        of_rows=True,
    ),
    "pair_accuracy": _share(
        "Pair accuracy",
        "Share of pairs of texts that the weighted reward orders as their scores do.",
        "mean(sign Δr = sign Δscore)",
    ),
    # --- reinforcement learning
    "reward": Meaning(
        "Reward",
        "Mean reward of the sampled completions: the weighted sum of the components, before any KL is subtracted.",
        "mean(Σ weight · score)",
        "",
        "higher",
    ),
    "reward_std": Meaning(
        "Spread of the reward",
        "Standard deviation of the reward over the completions; without spread there is nothing to learn from.",
        "",
        "",
        "neither",
    ),
    "frac_reward_zero_std": _share(
        "Groups without spread",
        "Share of prompts whose completions all score the same: they teach nothing.",
        "share of groups with σ(r) = 0",
        "lower",
    ),
    "unscored": _share(
        "Not scored",
        "Share of completions that a component could not score; they leave the loss.",
        "",
        "lower",
    ),
    "kl": Meaning(
        "Divergence from the reference",
        "How far the policy has moved from where it started, measured also when it costs nothing.",
        "KL(π ‖ π_ref) per token, by the spec's estimator",
        "nats",
        "steady",
    ),
    "kl_coefficient": Meaning("β now", "What a nat of divergence costs at the moment.", "", "", "neither"),
    "loss/policy": Meaning("Policy loss", "The clipped surrogate alone.", "−mean(min(ρA, clip(ρ)A))", "", "neither"),
    "loss/value": Meaning(
        "Value loss",
        "Half the squared distance of predicted from realized returns, clipped as the spec says.",
        "½·(V − R)²",
        "",
        "lower",
    ),
    "val/explained_variance": Meaning(
        "Explained variance",
        "Which part of the returns the value model foresees: 1 all, 0 no more than their mean, below 0 it misleads.",
        "1 − Var(R − V)/Var(R)",
        "",
        "higher",
        None,
        1,
    ),
    "policy/approxkl": Meaning(
        "Step in the policy",
        "How far the policy has moved from the one that sampled.",
        "½·(log π/π_old)²",
        "nats",
        "steady",
    ),
    "objective/kl": Meaning(
        "Divergence of a completion",
        "How far the policy is from its reference, over a whole completion.",
        "Σ log π/π_ref",
        "nats",
        "steady",
    ),
    "objective/scores": Meaning("Score", "Mean score of the completions, as it is learned from.", "", "", "higher"),
    "objective/rlhf_reward": Meaning(
        "Score less divergence",
        "What PPO raises: the score minus what the divergence cost.",
        "score − β·KL",
        "",
        "higher",
    ),
    "policy/clipfrac": _share(
        "Clipped", "Share of tokens whose ratio left the clip range and which so have no gradient.", "", "steady"
    ),
    "val/clipfrac": _share("Values clipped", "Share of tokens whose value left its clip range.", "", "steady"),
    "clip_ratio/low_mean": _share("Clipped below", "Share of tokens whose ratio fell below the range.", "", "steady"),
    "clip_ratio/high_mean": _share("Clipped above", "Share of tokens whose ratio rose above the range.", "", "steady"),
    "clip_ratio/region_mean": _share("Clipped", "Share of tokens whose ratio left the clip range.", "", "steady"),
    "completions/mean_length": Meaning("Length", "Mean length of the completions.", "", "tokens", "steady"),
    "completions/min_length": Meaning("Shortest", "Length of the shortest completion.", "", "tokens", "neither"),
    "completions/max_length": Meaning("Longest", "Length of the longest completion.", "", "tokens", "neither"),
    "completions/clipped_ratio": _share(
        "Cut", "Share of completions that reached the limit without ending by themselves.", "", "lower"
    ),
    "completions/mean_terminated_length": Meaning(
        "Length of those that ended", "Mean length of the completions that ended by themselves.", "", "tokens", "steady"
    ),
    "sampling/sampled": Meaning(
        "Groups sampled",
        "Prompts sampled for each that is learned from; 1 without resampling.",
        "",
        "per group",
        "lower",
    ),
    "sampling/dead_groups": _share(
        "Groups still without spread", "Share of groups without spread after all rounds.", better="lower"
    ),
    "rewards/unscored": _share(
        "Not scored", "Share of completions that some component could not score.", better="lower"
    ),
    "sampling/logp_difference": Meaning(
        "Sampler and trainer apart",
        "How far the log-probabilities of sampling lie from those of training; above 0.1 the ratio means nothing.",
        "mean |log π_sampled − log π|",
        "nats",
        "lower",
    ),
    "sampling/rounds": Meaning(
        "Rounds of sampling",
        "How often prompts were sampled until the batch was full of groups with spread.",
        "",
        "",
        "lower",
    ),
}

PATTERNS: tuple[tuple[re.Pattern[str], Meaning], ...] = (
    (
        re.compile(r"rewards/(?P<name>[^/]+)/mean"),
        Meaning("{name}", "Mean raw score of this component, before its weight.", "mean(score)", "", "higher"),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/std"),
        Meaning("{name}, spread", "Standard deviation of this component's raw score.", "", "", "neither"),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/unscored"),
        _share("{name}, not scored", "Share of completions that this component could not score.", "", "lower"),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/gated"),
        _share(
            "{name}, gate closed", "Share of completions for which the component's gate was closed.", better="neither"
        ),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/disagreement"),
        Meaning(
            "{name}, disagreement", "How far the members of the ensemble lie apart.", "std over members", "", "lower"
        ),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/(?P<how>wrong|runtime_error|timeout|memory|output_limit|malformed)"),
        _share("{name}, {how}", "Share of programs that ended so in the sandbox.", better="lower"),
    ),
    (
        re.compile(r"rewards/(?P<name>[^/]+)/infra_error"),
        _share(
            "{name}, sandbox broke",
            "Share of programs that the sandbox ended and not the program; they are not scored.",
            better="lower",
        ),
    ),
    (
        re.compile(r"mse/(?P<name>.+)"),
        Meaning(
            "{name}, error",
            "Mean squared distance of the predicted from the given score.",
            "mean((r − s)²)",
            "",
            "lower",
        ),
    ),
    (
        re.compile(r"baseline_mse/(?P<name>.+)"),
        Meaning("{name}, error of the mean", "The same if always the mean score were said.", "Var(s)", "", "neither"),
    ),
    (
        re.compile(r"pearson/(?P<name>.+)"),
        Meaning("{name}, correlation", "Correlation of predicted and given scores.", "Pearson ρ", "", "higher", -1, 1),
    ),
    (
        re.compile(r"spearman/(?P<name>.+)"),
        Meaning(
            "{name}, rank correlation",
            "Correlation of the ranks of predicted and given scores.",
            "Spearman ρ",
            "",
            "higher",
            -1,
            1,
        ),
    ),
)
"""Families of names: what a component or an attribute is called is up to the spec."""
