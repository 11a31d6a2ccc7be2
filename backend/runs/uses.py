"""What runs tell the parts below them: which versions they learned from, which models they started from.

Datasets and the registry may not import runs; the web's composition root hands them these functions.
"""

from collections.abc import Collection, Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets.service import Use
from backend.registry.lineage import RunNote
from backend.runs.tables import Run

MOST = 200


def version_uses(session: Session, actor: Actor, version_ids: Sequence[int]) -> dict[int, list[Use]]:
    """The runs that learned from each version, newest first."""
    found: dict[int, list[Use]] = {}
    query = select(Run).where(Run.dataset_version_id.in_(version_ids)).order_by(Run.id.desc()).limit(MOST)
    for run in session.scalars(query):
        use = Use(f"#{run.id} {run.method}", f"/runs/{run.id}", f"{run.name}, {run.state}")
        found.setdefault(run.dataset_version_id, []).append(use)
    return found


def tell_runs(
    session: Session,
    project_id: int,
    *,
    run_ids: Collection[int] = (),
    model_ids: Collection[int] = (),
    version_ids: Collection[int] = (),
) -> list[RunNote]:
    """The project's runs that have one of these ids, start from one of these models, or learn from one of these versions."""
    touches = or_(Run.id.in_(run_ids), Run.base_model_id.in_(model_ids), Run.dataset_version_id.in_(version_ids))
    query = select(Run).where(Run.project_id == project_id, touches).order_by(Run.id).limit(MOST)
    return [
        RunNote(run.id, run.method, run.state, run.state, run.base_model_id, run.dataset_version_id)
        for run in session.scalars(query)
    ]
