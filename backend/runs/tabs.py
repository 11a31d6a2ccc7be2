"""What each tab of a run's page holds, as its template takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.runs import diagnosis, export, glossary, meanings, readout, service, views
from backend.runs.readout import View


def overview(session: Session, actor: Actor, view: View, keys: Sequence[str], steps: Sequence[int]) -> dict[str, Any]:
    """Before and after, what looks wrong, the decisive charts and the last samples; *keys* and *steps* are what the run has."""
    is_going = view.active or view.state == "queued"
    decisive = glossary.decisive(view.method, {*keys, *views.expected(view.spec)} if is_going else keys)
    wanted = (
        {key for chart in decisive for key, _ in chart.keys}
        | {key for key in keys if meanings.is_held_out(key) or key.endswith("unscored")}
        | {"grad_norm"}
    )
    started = readout.started(session, view.id)
    rows = views.decided_rows(view.spec, started) if started else None
    series = readout.points(session, view.id, wanted & set(keys))
    samples = service.completions(session, actor, view.id, step=steps[-1], limit=64) if steps else []
    return {
        "changes": views.changes(view.method, series),
        "findings": diagnosis.diagnose(view.method, series, finished=not view.active, held_out_rows=rows),
        "charts": [(chart, views.lines(chart, view.id)) for chart in decisive],
        "reliability": views.reliability(series),
        "samples": samples,
        "samples_step": steps[-1] if steps else None,
        "reward_names": views.components(view.spec, samples),
        "against": None,
    }


def completions(
    session: Session, actor: Actor, view: View, steps: Sequence[int], step: int | None, against: int | None
) -> dict[str, Any]:
    """What the run wrote at *step* (else at the last of *steps*), beside what it wrote at the step *against*."""
    if not steps:
        return {"steps": []}
    shown = step if step is not None and step in steps else steps[-1]
    place = steps.index(shown)
    rows = service.completions(session, actor, view.id, step=shown, limit=64)
    earlier = None
    if against is not None and against in steps and against != shown:
        earlier = {
            sample.prompt: sample.completion
            for sample in service.completions(session, actor, view.id, step=against, limit=64)
        }
    return {
        "steps": list(reversed(steps)),
        "step": shown,
        "rows": rows,
        "reward_names": views.components(view.spec, rows),
        "against": earlier,
        "against_step": against if earlier is not None else None,
        "earlier": steps[place - 1] if place else None,
        "later": steps[place + 1] if place + 1 < len(steps) else None,
    }


@dataclass(frozen=True)
class SpecRow:
    """A field of the spec beside its default and the parent's value."""

    indent: str
    name: str
    value: str
    href: str | None
    default: str
    changed: bool
    parent: str
    parent_changed: bool
    means: str


def spec(session: Session, actor: Actor, view: View) -> dict[str, Any]:
    """Every field of the spec beside its default and, for a clone, beside the parent's value."""
    parent = service.get_run(session, actor, view.parent_id) if view.parent_id is not None else None
    of_parent = {leaf.path: leaf.value for leaf in views.leaves(views.parse(parent.spec))} if parent else {}
    words = {"base_model": view.model, "dataset": view.version}
    inherited_words: dict[str, str] = {}
    if parent is not None:
        inherited_words = {
            "base_model": readout.model_links(session, [parent.base_model_id])[parent.base_model_id].label,
            "dataset": readout.version_links(session, [parent.dataset_version_id])[parent.dataset_version_id].label,
        }
    scoring = readout.scoring_models(session, [view.spec])
    rows = []
    for leaf in views.leaves(view.spec):
        link = words.get(leaf.path)
        inherited = of_parent.get(leaf.path, views.ABSENT)
        rows.append(
            SpecRow(
                leaf.indent,
                leaf.name,
                link.label if link else scoring.get((leaf.path, leaf.value)) or views.said(leaf.value),
                views.href_of(leaf.path, leaf.value),
                "none" if leaf.default is views.ABSENT else views.said(leaf.default),
                leaf.changed,
                "does not apply"
                if inherited is views.ABSENT
                else inherited_words.get(leaf.path) or views.said(inherited),
                parent is not None and inherited != leaf.value,
                leaf.means,
            )
        )
    return {
        "fields": rows,
        "changed": sum(row.changed for row in rows),
        "parent_id": parent.id if parent else None,
        "parent_changed": sum(row.parent_changed for row in rows),
        "started": readout.started(session, view.id),
        "notes": readout.notes_before_start(session, view.id),
        "no_script": export.obstacle(view.spec),
    }


def lineage(session: Session, actor: Actor, view: View) -> dict[str, Any]:
    """What the run learned from, what it started from, what it made."""
    sources = []
    words: list[dict[str, str | None]] = [{"text": f"Run #{view.id} started from ", "href": None}]
    if view.model:
        sources.append(("model", view.model.label, view.model.sub, f"/models/{view.model.id}"))
        words.append({"text": view.model.label, "href": f"/models/{view.model.id}"})
    words.append({"text": " and learned from ", "href": None})
    if view.version:
        sources.append(("data", view.version.label, view.version.sub, f"/versions/{view.version.id}"))
        words.append({"text": view.version.label, "href": f"/versions/{view.version.id}"})
        words.append({"text": f" ({view.version.sub})", "href": None})
    if view.parent_id is not None:
        sources.append(("run", f"#{view.parent_id}", "cloned from", f"/runs/{view.parent_id}"))
        words.append({"text": "; its spec was cloned from ", "href": None})
        words.append({"text": f"#{view.parent_id}", "href": f"/runs/{view.parent_id}"})
    models = readout.models_made(session, view.id)
    words.append(
        {
            "text": ". It made "
            if models
            else ". It has made no model yet."
            if view.active or view.state == "queued"
            else ". It made no model.",
            "href": None,
        }
    )
    for index, model in enumerate(models):
        words.append({"text": ", " if index else "", "href": None})
        words.append({"text": model.label, "href": f"/models/{model.id}"})
    if models:
        words.append({"text": ".", "href": None})
    return {
        "graph": views.draw(
            (f"#{view.id} {view.method}", view.state, f"/runs/{view.id}"),
            sources,
            [(model.label, model.sub, f"/models/{model.id}") for model in models[-6:]],
        ),
        "words": words,
        "checkpoints": service.checkpoints(session, actor, view.id),
    }
