"""Runs side by side: what chance does between seeds, and which values may say so."""

import math
import re
from typing import Any

import pytest

from backend.accounts.actors import Actor
from backend.db import Sessions
from backend.runs import comparing, views
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
