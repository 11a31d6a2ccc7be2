"""What the form of a new run is built from: what people have, the method's schema and equation, models, rows, presets."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.registry import service as registry
from backend.registry.tokenizing import tokenizing_of
from backend.runs import checks, presets, readout, specs

if TYPE_CHECKING:
    from backend.datasets.tables import DatasetVersion
    from backend.registry.tables import Model
    from backend.runs.tables import Run

_PAPER = re.compile(r"(?P<words>[A-Z][\w &-]*(?: et al\.)? \d{4}), arXiv:(?P<number>\d{4}\.\d{4,5})")


def new_run(session: Session, actor: Actor, project_id: int, method: str, parent: "Run | None") -> dict[str, Any]:
    """The page's context: the chooser, and with a *method* its form, or what is missing for it."""
    fitting = {
        name: datasets.list_project_versions(session, actor, project_id, row_types=specs.NEEDS[name])
        for name in specs.METHODS
    }
    context: dict[str, Any] = {
        "project_id": project_id,
        "parent": parent,
        "method": method,
        "chooser": [asdict(have) | {"stock": _stock(fitting[have.ways[0].method])} for have in presets.CHOICES],
        "ready": False,
        "missing": None,
    }
    if not method:
        return context
    way = presets.way(method)
    context |= {"title": way.title, "because": way.because, "equation": presets.EQUATIONS[method]}
    context |= {"papers": papers(specs.METHODS[method])}
    models = base_models(session, actor, project_id, method)
    versions = fitting[method]
    if not models:
        context["missing"] = {
            "title": "There is no model to start from",
            "text": "A run starts from a base model or from what an earlier run made.",
            "href": f"/projects/{project_id}/models",
            "does": "Register a base model",
        }
    elif not versions:
        needs = " or ".join(sorted(kind.replace("_", " ") for kind in specs.NEEDS[method]))
        context["missing"] = {
            "title": "No dataset version fits",
            "text": f"This method learns from {needs} rows. Import some, or freeze the judgments of a labeling session.",
            "href": f"/projects/{project_id}/datasets",
            "does": "Import a dataset",
        }
    else:
        context |= {"ready": True} | _form(session, actor, project_id, method, models, versions, parent)
    return context


def papers(spec: type[specs.TrainingSpec]) -> list[tuple[str, str]]:
    """(authors and year, address) of each paper that the spec's sentence names."""
    said = " ".join((spec.__doc__ or "").split())
    return [(found["words"].strip(), f"https://arxiv.org/abs/{found['number']}") for found in _PAPER.finditer(said)]


def _stock(rows: Sequence[Any]) -> str:
    return f"{len(rows)} dataset version{'' if len(rows) == 1 else 's'}" if rows else "none yet"


def base_models(session: Session, actor: Actor, project_id: int, method: str) -> list[dict[str, Any]]:
    """Models that a run of *method* can start from: language models, and for a reward model one of its own kind.

    The first is what the form offers: SFT starts from a base, the others from what SFT made, else from a base. A model
    that learned preferences comes after those: runs to be compared would otherwise each start from the one before. Last
    come those whose run would be refused; their label says why.
    """
    found = list(registry.list_models(session, actor, project_id, kind="language", limit=200))
    made_by = checks.methods_of(session, found)
    order = (None, "sft") if method == "sft" else ("sft", None)
    endless = {model.id: why for model in found if model.run_id is None and (why := _endless(session, model, method))}
    found.sort(
        key=lambda model: (model.id in endless, order.index(by) if (by := made_by[model.id]) in order else len(order))
    )
    if method in specs.REWARD_MODELS:
        made = checks.reward_kinds(session, trained := _reward_models(session, actor, project_id))
        found += [model for model in trained if made[model.id] == method]
    return [{"id": model.id, "label": model_label(model) + endless.get(model.id, "")} for model in found]


def _endless(session: Session, model: "Model", method: str) -> str:
    """What a label adds of a registered model that could never end; ``""`` if nothing is known to be wrong."""
    known = tokenizing_of(session, model, carry_out=False)
    if known.has_end is False:
        return " · cannot be trained: no end token"
    online = issubclass(specs.METHODS[method], specs.OnlineSpec)  # such a run may end with the generation config's too
    if known.template and known.end is not None and not online and not known.may_end_with([known.end]):
        return " · cannot learn from conversations: its chat template writes no end token"
    return ""


def _reward_models(session: Session, actor: Actor, project_id: int) -> Sequence["Model"]:
    return registry.list_models(session, actor, project_id, kind="reward", limit=200)


def model_label(model: "Model") -> str:
    """A model in a list of choices."""
    said = "adapter" if model.adapter_of_id is not None else ("base" if model.run_id is None else "whole weights")
    step = f" step {model.step}" if model.step is not None else ""
    return f"{model.name} · {said}" + (f", run #{model.run_id}{step}" if model.run_id else "")


def _form(
    session: Session,
    actor: Actor,
    project_id: int,
    method: str,
    models: list[dict[str, Any]],
    versions: Sequence["DatasetVersion"],
    parent: "Run | None",
) -> dict[str, Any]:
    """The JSON blocks that ``<spec-form>`` is built from."""
    same_method = parent is not None and parent.method == method
    scoring = _reward_models(session, actor, project_id)
    kinds = checks.reward_kinds(session, scoring)
    return {
        "schema": specs.spec_schema(method),
        "options": {
            "models": models,
            "reward_models": [
                {"id": model.id, "label": model_label(model), "method": kinds[model.id]} for model in scoring
            ],
            "versions": [_version(version) for version in versions],
            "pace": readout.pace(session, project_id, method),
        },
        "presets": [asdict(group) for group in presets.PRESETS[method]],
        "start": {
            "name": "",
            "parent": parent.id if parent is not None and same_method else None,
            "spec": parent.spec if parent is not None and same_method else None,
            "home": f"/projects/{project_id}/runs",
        },
        "workers": readout.capacity(session),
    }


def _version(version: "DatasetVersion") -> dict[str, Any]:
    return {
        "id": version.id,
        "label": f"{version.dataset.name} v{version.number} · {version.row_count:,} rows",
        "rows": version.row_count,
        "row_type": version.row_type,
        "columns": list(datasets.columns_of(version)),
        "attributes": sorted(version.statistics.get("scores", {})),
    }
