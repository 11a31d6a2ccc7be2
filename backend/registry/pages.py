"""Pages of the registry: all models, and one model with its lineage."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from backend.accounts.access import Viewer
from backend.accounts.actors import Permission
from backend.registry import lineage, service
from backend.web.rendering import render
from backend.web.units import UnitOfWork

router = APIRouter(include_in_schema=False)


@router.get("/projects/{project_id}/models")
def list_page(
    request: Request,
    actor: Viewer,
    session: UnitOfWork,
    project_id: int,
    kind: Annotated[str, Query(pattern="^(|base|adapter|reward)$")] = "",
    after: int | None = None,
) -> HTMLResponse:
    """The project's models by kind."""
    models = service.list_models(
        session,
        actor,
        project_id,
        kind={"base": "language", "adapter": "language", "reward": "reward"}.get(kind),  # type: ignore[arg-type]
        adapters={"base": False, "adapter": True}.get(kind),
        after=after,
        limit=51,
    )
    counts = service.kinds(session, actor, project_id)
    return render(
        request,
        "models/list.html",
        project_id=project_id,
        models=models[:50],
        kind=kind,
        of_kind=counts,
        next=f"?kind={kind}&after={models[49].id}" if len(models) > 50 else None,
        kind_words=lineage.kind_words,
        may_register=actor.may(Permission.ENGINEER, project_id),
    )


@router.get("/models/{model_id}")
def model_page(request: Request, actor: Viewer, session: UnitOfWork, model_id: int) -> HTMLResponse:
    """One model: files, facts, lineage."""
    model = service.get_model(session, actor, model_id)
    shell = getattr(request.state, "shell", None)
    if shell is not None:
        shell.enter(model.project_id)
    found = lineage.trace(session, actor, model_id, getattr(request.app.state, "tell_runs", None))
    behind = [found.nodes[key] for key in found.nodes if key in found.ancestors]
    after = [node for key, node in found.nodes.items() if key not in found.ancestors and not node.is_here]
    return render(
        request,
        "models/model.html",
        model=model,
        files=service.manifest_of(model),
        author=service.author(session, model),
        kind=lineage.kind_words(model),
        lineage=found,
        behind=behind,
        after=after,
        may_train=actor.may(Permission.ENGINEER, model.project_id),
    )
