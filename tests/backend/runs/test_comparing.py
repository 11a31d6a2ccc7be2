"""Runs side by side: what chance does between seeds, and which values may say so."""

import math
import re
from typing import Any

import pytest

from backend.accounts.actors import Actor
from backend.db import Sessions
from backend.runs import comparing, specs, views
from backend.runs import events as said
from backend.runs.leases import Ending
from tests.backend.runs.material import Material, claim, conclude, hello, record, started, submit
from tests.conftest import MakeClient


def _finals(*values: float | None) -> list[views.Final]:
    return views.finals([("dpo", {"eval_loss": [(9, value)]} if value is not None else {}, False) for value in values])


def test_only_runs_that_succeeded_count_for_the_spread() -> None:
    finals = _finals(0.3, 0.5, 9.0)
    counted = comparing.spread(finals, [True, True, False])["eval_loss"]
    assert counted == (pytest.approx(0.4), pytest.approx(math.sqrt(0.02)))
    assert comparing.spread(finals, [True, False, False]) == {}, "one value has no spread"
    assert comparing.spread(_finals(0.3, None), [True, True]) == {}


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
def test_a_seed_that_diverged_is_neither_left_out_nor_the_best(diverged: float) -> None:
    finals = _finals(0.3, 0.5, diverged)
    assert comparing.spread(finals, [True] * 3) == {"eval_loss": None}
    assert comparing.spread(finals, [True, True, False])["eval_loss"] is not None
    assert [cell.best for cell in finals[0].cells] == [True, False, False]


def _dpo(**fields: Any) -> specs.AnySpec:
    return specs.SPEC.validate_python({"method": "dpo", "base_model": 1, "dataset": 1, **fields})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"dataset": 2}, "dataset"),
        ({"evaluation": {"held_out": 0.3}}, "evaluation.held_out"),
        ({"evaluation": {"max_rows": 9}}, "evaluation.max_rows"),
        ({"loss": {"kind": "ipo"}}, "loss"),
        ({"beta": 0.7}, "beta"),
    ],
)
def test_what_was_measured_otherwise_has_no_best(other: dict[str, Any], named: str) -> None:
    told = comparing.not_comparable(_finals(0.3, 0.5), [_dpo(), _dpo(**other)])
    assert f"({named})" in told["eval_loss"]


def test_how_a_run_learned_does_not_change_what_is_measured() -> None:
    other = _dpo(seed=5, optimization={"learning_rate": 1e-4}, weights={"kind": "lora"}, evaluation={"every_steps": 7})
    assert comparing.not_comparable(_finals(0.3, 0.5), [_dpo(), other]) == {}
    assert comparing.not_comparable(_finals(0.3, None), [_dpo(), _dpo(dataset=2)]) == {}, "only one has a value"
    accuracies = views.finals([("dpo", {"eval_rewards/accuracies": [(9, value)]}, False) for value in (0.6, 0.7)])
    assert comparing.not_comparable(accuracies, [_dpo(), _dpo(beta=0.7)]) == {}, "an accuracy has no scale"


def test_the_page_says_why_no_value_is_the_best(
    sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material
) -> None:
    hello(sessions, slots=2)
    ids = []
    for folder, beta in (("a", 0.1), ("b", 0.7)):
        ids.append(submit(sessions, engineer, material, steps=20, beta=beta))
        at_end = {"eval_loss": 0.3 + beta, "eval_rewards/accuracies": 0.5 + beta / 10}
        record(sessions, claim(sessions, folder=folder), 0, [started(20), said.Metrics(step=20, values=at_end)])
    page = make_client(engineer, browser=True).get(
        f"/projects/{material.project_id}/compare", params={"runs": ",".join(map(str, ids))}
    )
    shown = " ".join(page.text.split())
    assert "No best is marked in Loss: not the same quantity in these runs (beta)." in shown
    assert shown.count('class="num best"') == 1, "the accuracy still has one"


def test_the_page_says_what_the_spread_is_of(
    sessions: Sessions, make_client: MakeClient, engineer: Actor, material: Material
) -> None:
    hello(sessions, slots=4)
    values: list[Any] = [(0.3, 0.5), (0.5, "nan"), (0.9, 0.9)]
    ids = []
    for seed, (loss, margin) in enumerate(values):
        ids.append(submit(sessions, engineer, material, steps=20, seed=seed))
        held = claim(sessions, folder=f"a{seed}")
        at_end = {"eval_loss": loss, "eval_rewards/margins": margin}
        record(sessions, held, 0, [started(20), said.Metrics(step=20, values=at_end)])
        if seed < 2:
            conclude(sessions, held, Ending("succeeded", step=20))
    client = make_client(engineer, browser=True)

    def said_of(*runs: int) -> str:
        page = client.get(f"/projects/{material.project_id}/compare", params={"runs": ",".join(map(str, runs))})
        assert page.status_code == 200
        return " ".join(re.sub(r"<[^>]+>", " ", page.text).split())

    everyone = said_of(*ids)
    assert "0.4 ± 0.14" in everyone, "of the two that succeeded"
    assert "not finite" in everyone
    assert "standard deviation of those that succeeded" in everyone
    waiting = said_of(ids[0], ids[2])
    assert ("Mean ± spread" in waiting, "once two have succeeded" in waiting) == (False, True)
