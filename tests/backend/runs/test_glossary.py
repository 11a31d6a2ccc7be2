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


def test_all_keys_are_charted_training_and_held_out_together() -> None:
    groups = dict(glossary.grouped(["loss", "eval_loss", "rewards/margins", "eval_runtime", "my/own"]))
    assert [chart.title for chart in groups["general"]] == ["Loss"]
    assert groups["general"][0].keys == (("loss", "training"), ("eval_loss", "held out"))
    assert set(groups) == {"general", "rewards", "speed", "my"}
    assert meanings.meaning("my/own").name == "my/own"
