"""The diagnosis says only what the points show."""

import math

from backend.runs import glossary, meanings
from backend.runs.diagnosis import Series, diagnose


def _titles(method: str, series: dict[str, Series], finished: bool = True) -> list[str]:
    return [finding.title for finding in diagnose(method, series, finished=finished)]


def test_no_points_no_sentences() -> None:
    assert _titles("dpo", {}) == []


def test_direction_decides_what_learning_is() -> None:
    assert _titles("dpo", {"eval_rewards/accuracies": [(0, 0.5), (100, 0.8)]}) == ["It learns."]
    assert _titles("dpo", {"eval_rewards/accuracies": [(0, 0.8), (100, 0.5)]}) == ["It gets worse."]
    assert _titles("sft", {"eval_loss": [(0, 2.0), (100, 1.0)]}) == ["It learns."]
    assert _titles("sft", {"eval_loss": [(0, 1.0), (100, 1.001)]}) == ["It stands still."]


def test_nan_comes_first_with_its_step() -> None:
    found = diagnose(
        "sft", {"loss": [(1, 2.0), (2, math.nan), (3, math.inf)], "eval_loss": [(0, 2.0), (3, 1.0)]}, finished=False
    )
    assert found[0].look
    assert "2 steps, first at step 2" in found[0].text
    assert found[1].title == "It learns."


def test_overfitting_is_called_learning_by_heart() -> None:
    train = [(step, 2.0 - step / 60) for step in range(0, 100, 10)]
    held_out = [(0, 2.0), (25, 1.2), (50, 1.4), (75, 1.7), (100, 1.9)]
    titles = _titles("sft", {"loss": train, "eval_loss": held_out})
    assert "It learns by heart." in titles
    assert "The best is behind it." in titles


def test_dpo_warns_when_chosen_texts_become_unlikely() -> None:
    fall = [(step, -40.0 - step) for step in range(0, 80, 5)]
    assert "Watch the chosen texts." in _titles("dpo", {"eval_logps/chosen": fall})
    assert "Watch the chosen texts." not in _titles("dpo", {"eval_logps/chosen": [(s, -40.0) for s, _ in fall]})
    # batches differ in the length of their texts: their log-probabilities prove nothing
    assert "Watch the chosen texts." not in _titles("dpo", {"logps/chosen": fall})
    for method, after, said, remedy in (
        ("dpo", 1.0, "margin grows", "SFT weight"),
        ("kto", -1.0, "not grow", "β or a"),
    ):
        told = diagnose(
            method, {"eval_logps/chosen": fall, "eval_rewards/margins": [(0, 0.0), (75, after)]}, finished=True
        )
        watch = next(finding for finding in told if finding.title == "Watch the chosen texts.")
        assert said in watch.text
        assert remedy in watch.text


def test_all_keys_are_charted_training_and_held_out_together() -> None:
    groups = dict(glossary.grouped(["loss", "eval_loss", "rewards/margins", "eval_runtime", "my/own"]))
    assert [chart.title for chart in groups["general"]] == ["Loss"]
    assert groups["general"][0].keys == (("loss", "training"), ("eval_loss", "held out"))
    assert set(groups) == {"general", "rewards", "speed", "my"}
    assert meanings.meaning("my/own").name == "my/own"


def _ramp(first: float, last: float, n: int = 40) -> Series:
    return [(step, first + (last - first) * step / (n - 1)) for step in range(n)]


def test_a_share_of_rows_carries_its_interval() -> None:
    points: Series = [(0, 0.5), (60, 0.875)]
    told = diagnose("reward", {"eval_accuracy": points}, finished=True, held_out_rows=96)[0]
    # Wilson with 96 rows, z² = 3.8415: at 1/2 the half is 1.96·√(0.25/96 + 3.8415/36864)/1.04 = 0.098; 84 of 96 lie from
    # (0.875 + 0.02)/1.04 − 1.96·√(0.109375/96 + 0.0001042)/1.04 = 0.8605 − 0.0664 to 0.8605 + 0.0664
    assert told.title == "It learns."
    assert (
        "from 0.5 [0.402, 0.598] at step 0 to 0.875 [0.794, 0.927] at step 60 (95 % intervals, 96 rows)." in told.text
    )
    # 12 rows: arms of 0.2462 above 6 of 12 and 0.75 − 0.4677 = 0.2823 below 9 of 12, together 0.375 > 0.25
    few = diagnose("reward", {"eval_accuracy": [(0, 0.5), (60, 0.75)]}, finished=True, held_out_rows=12)[0]
    assert few.title == "Too few rows to tell."
    assert "moves it by 0.375" in few.text
    # a loss is no share of rows, whatever their number
    assert "[" not in diagnose("sft", {"eval_loss": [(0, 2.0), (9, 1.0)]}, finished=True, held_out_rows=12)[0].text


def test_only_a_run_that_goes_on_has_a_next_evaluation() -> None:
    once: dict[str, Series] = {"eval_loss": [(0, 2.0)]}
    assert "the next evaluation" in diagnose("sft", once, finished=False)[0].text
    assert "next" not in diagnose("sft", once, finished=True)[0].text


def test_a_policy_that_is_its_reference_has_no_interval() -> None:
    """Before the first step 0.5 is a convention: nothing was counted, and chance is that of the last value alone."""
    accuracy: Series = [(0, 0.5), (60, 0.75)]
    begins: Series = [(0, 0.0), (60, 0.3)]
    once = diagnose(
        "dpo",
        {"eval_rewards/accuracies": accuracy[:1], "eval_rewards/margins": begins[:1]},
        finished=False,
        held_out_rows=20,
    )[0]
    assert "was 0.5 at step 0 (where the policy is its reference)" in once.text
    series = {"eval_rewards/accuracies": accuracy, "eval_rewards/margins": begins}
    told = diagnose("dpo", series, finished=True, held_out_rows=20)[0]
    # 15 of 20: (0.75 + 0.096)/1.192 − 1.96·√(0.009375 + 0.0024)/1.192 = 0.71 − 0.178 = 0.531, so the arm is 0.219 < 0.25
    assert told.title == "It learns."
    assert "0.75 [0.531, 0.888] at step 60" in told.text
    # a pair of 0.5 and a margin that is not 0 was counted: its arm of 0.2 makes √(0.219² + 0.2²) = 0.3 > 0.25
    counted = series | {"eval_rewards/margins": [(0, 0.01), (60, 0.3)]}
    assert diagnose("dpo", counted, finished=True, held_out_rows=20)[0].title == "Too few rows to tell."


def test_a_gamed_reward_is_called_so_only_when_the_policy_runs_away() -> None:
    rises = {"reward": _ramp(0, 2)}
    assert "The reward may be gamed." in _titles("grpo", rises | {"kl": _ramp(0.01, 4)})
    assert "The reward may be gamed." not in _titles("grpo", rises | {"kl": _ramp(0.01, 0.08)})
    assert "The reward may be gamed." not in _titles("grpo", {"reward": _ramp(1, 0), "kl": _ramp(0.01, 4)})
    assert "The reward may be gamed." not in _titles("sft", rises | {"kl": _ramp(0.01, 4)})


def test_collapse_length_and_dead_groups_are_told() -> None:
    assert "The policy has stopped exploring." in _titles("ppo", {"entropy": _ramp(1.5, 0.01)})
    assert "The policy has stopped exploring." not in _titles("ppo", {"entropy": _ramp(1.5, 0.9)})
    assert "Completions grow to the limit." in _titles("grpo", {"completions/clipped_ratio": _ramp(0, 0.8)})
    assert "Completions grow to the limit." not in _titles("grpo", {"completions/clipped_ratio": _ramp(0.9, 0.3)})
    assert "Most groups teach nothing." in _titles("grpo", {"frac_reward_zero_std": _ramp(0.2, 0.9)})
    assert "Some completions are not scored." in _titles("grpo", {"rewards/correct/unscored": _ramp(0.2, 0.2)})
    assert "Some completions are not scored." not in _titles("grpo", {"rewards/correct/unscored": _ramp(0, 0)})
    assert "The value model misleads." in _titles("ppo", {"val/explained_variance": _ramp(-1, -0.2)})
    assert "The value model misleads." not in _titles("ppo", {"val/explained_variance": _ramp(-1, 0.9)})


def test_steps_of_which_most_are_right_are_not_learned_by_always_saying_so() -> None:
    rises: dict[str, Series] = {"eval_step_accuracy": [(0, 0.742), (60, 0.91)]}
    for base, title in ((0.91, "It says what most are."), (0.85, "It learns.")):
        told = diagnose("process_reward", rises | {"eval_step_base_rate": [(0, base), (60, base)]}, finished=True)
        assert told[0].title == title
    assert _titles("process_reward", rises) == ["It learns."]


def test_a_reward_model_is_held_to_its_baselines_and_its_probabilities() -> None:
    learned: dict[str, Series] = {
        "eval_accuracy": [(0, 0.5), (60, 0.7)],
        "eval_length_accuracy": [(0, 0.72), (60, 0.72)],
    }
    assert "It is no better than its baseline." in _titles("reward", learned)
    learned["eval_length_accuracy"] = [(0, 0.6), (60, 0.6)]
    assert "It is no better than its baseline." not in _titles("reward", learned)
    steps: dict[str, Series] = {
        "eval_solution_accuracy": [(0, 0.8), (9, 0.8)],
        "eval_solution_base_rate": [(0, 0.8), (9, 0.8)],
    }
    assert "It is no better than its baseline." in _titles("process_reward", steps)
    pairs = learned | {"eval_rewards/accuracies": [(0, 0.5), (60, 0.55)]}
    for method in ("dpo", "kto", "orpo", "simpo"):
        assert "It is no better than its baseline." in _titles(method, pairs)
        assert "It is no better than its baseline." not in _titles(
            method, {"eval_rewards/accuracies": pairs["eval_rewards/accuracies"]}
        )
    sure = {"eval_ece": [(0, 0.3), (9, 0.2)], "eval_temperature": [(0, 1.0), (9, 2.5)]}
    told = next(f for f in diagnose("reward", sure, finished=True) if f.title == "Its probabilities are off.")
    assert "60 or 100 %" in told.text
    assert "too sure: divide its rewards by 2.5" in told.text
    assert "Its probabilities are off." not in _titles("reward", {"eval_ece": [(0, 0.3), (9, 0.05)]})


def test_components_and_attributes_have_meanings_and_charts_of_their_own() -> None:
    assert meanings.meaning("eval_rewards/correct/mean").name == "correct"
    assert meanings.meaning("rewards/margins").name == "Margin"
    assert meanings.meaning("eval_pearson/helpful").better == "higher"
    assert meanings.meaning("rewards/code/infra_error").name == "code, sandbox broke"
    charts = glossary.decisive("grpo", ["reward", "rewards/correct/mean", "rewards/length/mean", "rewards/length/std"])
    assert charts[1].keys == (("rewards/correct/mean", "correct"), ("rewards/length/mean", "length"))
    assert glossary.decisive("grpo", ["rewards/correct/mean"]) == list(glossary.DECISIVE["grpo"])
    assert glossary.grouped(["eval_reliability/accuracy_0"]) == []
