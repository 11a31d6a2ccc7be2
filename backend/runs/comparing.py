"""Several runs side by side: what they were asked that differs, what they measured, what they wrote to the same prompt."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.runs import meanings, metrics, readout, service, specs, views
from backend.runs.readout import View


def compare(session: Session, actor: Actor, chosen: Sequence[View], prompt: int) -> dict[str, Any]:
    """What the page shows of two or more *chosen* runs; *prompt* counts from 0 among the prompts that they share."""
    named: dict[tuple[str, Any], str] = {}
    for view in chosen:
        if view.model:
            named["base_model", view.model.id] = view.model.label
        if view.version:
            named["dataset", view.version.id] = view.version.label
    named |= readout.scoring_models(session, [view.spec for view in chosen])
    differing, count = views.differences([view.spec for view in chosen], named)
    measured = {view.id: metrics.keys_of(session, view.id) for view in chosen}
    held_out = {
        view.id: readout.points(session, view.id, [key for key in measured[view.id] if meanings.is_held_out(key)])
        for view in chosen
    }
    charts = []
    all_keys = {key for keys in measured.values() for key in keys}
    for chart in views.overlaid([view.method for view in chosen], all_keys):
        key = chart.keys[0][0]
        if key in all_keys:
            charts.append(
                (
                    chart,
                    [
                        {
                            "run": view.id,
                            "key": key,
                            "label": f"#{view.id}",
                            "slot": slot,
                            "held_out": meanings.is_held_out(key),
                        }
                        for slot, view in enumerate(chosen, 1)
                    ],
                )
            )
    finals = views.finals([(view.method, held_out[view.id], view.active) for view in chosen])
    unranked = not_comparable(finals, [view.spec for view in chosen])
    seeds_only = {row.name for row in differing} <= {"seed"}
    return {
        "differing": differing,
        "field_count": count,
        "charts": charts,
        "live": any(view.active for view in chosen),
        "finals": finals,
        "unranked": unranked,
        "seeds_only": seeds_only,
        "spread": spread(finals, [view.state == "succeeded" for view in chosen]) if seeds_only else {},
        "same_address": "?" + urlencode({"runs": ",".join(str(view.id) for view in chosen)}),
        **_same_prompt(session, actor, chosen, prompt),
    }


_SCALES: dict[str, tuple[str, ...]] = {
    "rewards/chosen": ("method", "beta", "reference"),
    "rewards/rejected": ("method", "beta", "reference"),
    "rewards/margins": ("method", "beta", "reference"),
    "reward": ("rewards", "scores"),
    "objective/rlhf_reward": ("rewards", "scores", "kl"),
}
"""Metric → fields of the spec that say what it measures: where they differ, a higher value need not be the better one."""
_SAME_LOSS = frozenset({*specs.TrainingSpec.model_fields, "packing"})
"""Fields that change how the loss is made small, not what it is; a method's own fields are the others."""


def not_comparable(finals: Sequence[views.Final], compared: Sequence[specs.AnySpec]) -> dict[str, str]:
    """Why no value of a metric is the best of its row, by key; only metrics that have a direction."""
    told: dict[str, str] = {}
    for row in finals:
        measured = [spec for spec, cell in zip(compared, row.cells, strict=True) if cell.value is not None]
        if len(measured) < 2 or row.better not in ("higher", "lower"):
            continue
        rows = [
            {
                "dataset": spec.dataset,
                "evaluation.held_out": spec.evaluation.held_out,
                "evaluation.max_rows": spec.evaluation.max_rows,
            }
            for spec in measured
        ]
        name = meanings.bare(row.key)
        asked = [spec.model_dump() for spec in measured]
        own = dict.fromkeys(key for of_run in asked for key in of_run if key not in _SAME_LOSS)
        deciding = tuple(own) if name == "loss" else _SCALES.get(name, ())
        if other := _differing(rows, tuple(rows[0])):
            told[row.key] = f"measured on different held-out rows ({other})"
        elif other := _differing(asked, deciding):
            told[row.key] = f"not the same quantity in these runs ({other})"
    return told


def _differing(of_runs: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    return ", ".join(one for one in fields if any(of_run.get(one) != of_runs[0].get(one) for of_run in of_runs))


def spread(finals: Sequence[views.Final], succeeded: Sequence[bool]) -> dict[str, tuple[float, float] | None]:
    """Mean and standard deviation (n − 1) of each metric over runs that differ in their seed only.

    Only runs that *succeeded* count: the last value of another is of an earlier step, so it would measure how far the
    run came. ``None``: one of the values is not finite, and the mean of the others would hide the seed that diverged.
    """
    found: dict[str, tuple[float, float] | None] = {}
    for row in finals:
        ended = zip(row.cells, succeeded, strict=True)
        values = [cell.value for cell, counts in ended if counts and cell.value is not None]
        if len(values) > 1:
            found[row.key] = (fmean(values), stdev(values)) if all(map(math.isfinite, values)) else None
    return found


@dataclass(frozen=True)
class Beside:
    """One run's completion of the shared prompt."""

    run_id: int
    step: int
    text: str | None = None
    tokens: int = 0
    ended: bool = True
    rewards: Mapping[str, float | None] = field(default_factory=dict)
    """Raw scores by component; ``None``: not scored."""


def _in_order(view: View, sample: Any) -> dict[str, float | None]:
    return {name: sample.rewards[name] for name in views.components(view.spec, [sample])}


def _same_prompt(session: Session, actor: Actor, chosen: Sequence[View], wanted: int) -> dict[str, Any]:
    last: dict[int, tuple[int, dict[str, Any]]] = {}
    for view in chosen:
        steps = service.completion_steps(session, actor, view.id)
        samples = service.completions(session, actor, view.id, step=steps[-1], limit=64) if steps else []
        last[view.id] = (steps[-1] if steps else 0, {sample.prompt: sample for sample in samples})
    prompts = list(dict.fromkeys(text for _, by_prompt in last.values() for text in by_prompt))
    shared = [text for text in prompts if sum(text in by_prompt for _, by_prompt in last.values()) > 1]
    if not shared:
        return {"prompt": None, "prompt_index": 0, "prompt_count": 0, "samples": []}
    index = max(0, min(wanted, len(shared) - 1))
    beside = []
    for view in chosen:
        step, by_prompt = last[view.id]
        sample = by_prompt.get(shared[index])
        beside.append(
            Beside(view.id, step)
            if sample is None
            else Beside(view.id, step, sample.completion, sample.tokens, sample.ended, _in_order(view, sample))
        )
    return {"prompt": shared[index], "prompt_index": index, "prompt_count": len(shared), "samples": beside}
