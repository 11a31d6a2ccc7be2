"""Where a model came from and what was made from it: dataset versions, runs and models as one graph, both ways.

Runs stand above the registry, so they are told by whoever composes the studio (``tell_runs``), not imported.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.service import DatasetVersion
from backend.registry import service
from backend.registry.tables import Model

MOST_NODES = 80
COLUMN_WIDTH = 208
ROW_HEIGHT = 60


class RunNote(NamedTuple):
    """What a lineage knows of a run."""

    id: int
    method: str
    state: str
    detail: str
    base_model_id: int
    dataset_version_id: int


class TellRuns(Protocol):
    """The project's runs that have one of these ids, start from one of these models, or learn from one of these versions."""

    def __call__(
        self,
        session: Session,
        project_id: int,
        *,
        run_ids: Collection[int] = (),
        model_ids: Collection[int] = (),
        version_ids: Collection[int] = (),
    ) -> Sequence[RunNote]:
        """Ask for them."""
        ...


@dataclass
class Node:
    """A model, a run, a dataset version or judgments. ``kind`` is ``model``, ``run``, ``data`` or ``votes``."""

    kind: str
    id: int
    name: str
    detail: str
    href: str
    is_here: bool = False
    is_live: bool = False
    x: int = 0
    y: int = 0


@dataclass
class Lineage:
    """Nodes and edges (pairs of node keys, from cause to effect), placed for drawing; ``words`` says the same."""

    nodes: dict[tuple[str, int], Node] = field(default_factory=dict)
    edges: list[tuple[tuple[str, int], tuple[str, int]]] = field(default_factory=list)
    ancestors: set[tuple[str, int]] = field(default_factory=set)
    width: int = 0
    height: int = 0

    def link(self, cause: tuple[str, int], effect: tuple[str, int]) -> None:
        """Remember that *cause* led to *effect*."""
        if (cause, effect) not in self.edges:
            self.edges.append((cause, effect))

    def paths(self) -> list[str]:
        """The edges as SVG paths."""
        found = []
        for cause, effect in self.edges:
            a, b = self.nodes[cause], self.nodes[effect]
            start = a.x + 26 + int(6.9 * min(26, max(len(a.name), 0.9 * len(a.detail))))
            middle = (start + b.x - 6) // 2
            found.append(f"M{start} {a.y}C{middle} {a.y} {middle} {b.y} {b.x - 6} {b.y}")
        return found


def kind_words(model: Model) -> str:
    """``base``, ``adapter`` or ``reward model``."""
    return (
        "reward model"
        if model.kind == "reward"
        else "adapter"
        if model.adapter_of_id is not None
        else "weights"
        if model.run_id
        else "base"
    )


def _model_node(found: Lineage, model: Model) -> tuple[str, int]:
    key = ("model", model.id)
    detail = kind_words(model) + (f", step {model.step:,}" if model.step is not None else "")
    found.nodes.setdefault(key, Node("model", model.id, model.name, detail, f"/models/{model.id}"))
    return key


def _run_node(found: Lineage, run: RunNote) -> tuple[str, int]:
    key = ("run", run.id)
    is_live = run.state in ("starting", "running", "cancelling")
    found.nodes.setdefault(
        key, Node("run", run.id, f"#{run.id} {run.method}", run.detail or run.state, f"/runs/{run.id}", is_live=is_live)
    )
    return key


def _version_node(found: Lineage, version: DatasetVersion) -> tuple[str, int]:
    key = ("data", version.id)
    name = f"{version.dataset.name} v{version.number}"
    found.nodes.setdefault(
        key, Node("data", version.id, name, f"{version.row_count:,} rows", f"/versions/{version.id}")
    )
    session_id = version.origin.get("labeling_session_id")
    if isinstance(session_id, int):
        votes = ("votes", session_id)
        found.nodes.setdefault(
            votes, Node("votes", session_id, "judgments", f"session {session_id}", f"/labeling/{session_id}")
        )
        found.link(votes, key)
    return key


def trace(session: Session, actor: Actor, model_id: int, tell_runs: TellRuns | None = None) -> Lineage:
    """The lineage of a model: everything it came from, and everything that was made from it."""
    here = service.get_model(session, actor, model_id)
    found = Lineage()
    _model_node(found, here)
    _ancestors(session, actor, here, found, tell_runs)
    found.ancestors = set(found.nodes) - {("model", here.id)}
    _descendants(session, here, found, tell_runs)
    found.nodes["model", here.id].is_here = True
    _place(found)
    return found


def _ancestors(session: Session, actor: Actor, here: Model, found: Lineage, tell_runs: TellRuns | None) -> None:
    waiting, seen = [here], {here.id}
    while waiting and len(found.nodes) < MOST_NODES:
        model = waiting.pop()
        key = _model_node(found, model)
        runs = tell_runs(session, model.project_id, run_ids=[model.run_id]) if tell_runs and model.run_id else ()
        came_from = model.adapter_of_id
        for run in runs:
            found.link(_run_node(found, run), key)
            version = datasets.get_version(session, actor, run.dataset_version_id)
            found.link(_version_node(found, version), ("run", run.id))
            came_from = run.base_model_id
        parent = session.get(Model, came_from) if came_from is not None else None
        if parent is not None:
            found.link(_model_node(found, parent), ("run", runs[0].id) if runs else key)
            if parent.id not in seen:
                seen.add(parent.id)
                waiting.append(parent)


def _descendants(session: Session, here: Model, found: Lineage, tell_runs: TellRuns | None) -> None:
    level = {here.id}
    while level and len(found.nodes) < MOST_NODES:
        runs = list(tell_runs(session, here.project_id, model_ids=level)) if tell_runs else []
        for run in runs:
            found.link(("model", run.base_model_id), _run_node(found, run))
        run_ids = [run.id for run in runs]
        made = session.scalars(
            select(Model)
            .where((Model.run_id.in_(run_ids)) | (Model.adapter_of_id.in_(level) & Model.run_id.is_(None)))
            .order_by(Model.id)
            .limit(MOST_NODES)
        ).all()
        level = set()
        for model in made:
            if ("model", model.id) in found.nodes:
                continue
            cause = ("run", model.run_id) if model.run_id in run_ids else ("model", model.adapter_of_id or 0)
            found.link(cause, _model_node(found, model))
            level.add(model.id)


def _place(found: Lineage) -> None:
    """Columns by the longest way from a source, rows in the order in which things were found."""
    column = dict.fromkeys(found.nodes, 0)
    for _ in found.nodes:
        moved = False
        for cause, effect in found.edges:
            if column[effect] < column[cause] + 1:
                column[effect], moved = column[cause] + 1, True
        if not moved:
            break
    for cause, _ in found.edges:  # a source stands right before its first effect
        if not any(effect == cause for _, effect in found.edges):
            column[cause] = min(column[effect] for start, effect in found.edges if start == cause) - 1
    columns: dict[int, list[Node]] = {}
    for key, node in found.nodes.items():
        columns.setdefault(column[key], []).append(node)
    most = max(len(nodes) for nodes in columns.values())
    for number, nodes in columns.items():
        for index, node in enumerate(nodes):
            node.x = 10 + COLUMN_WIDTH * (number - min(columns))
            node.y = 30 + int((index + (most - len(nodes)) / 2) * ROW_HEIGHT)
    found.width = 40 + COLUMN_WIDTH * len(columns)
    found.height = 30 + ROW_HEIGHT * most
