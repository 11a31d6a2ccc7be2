from sqlalchemy import func, select

from backend.accounts import service as accounts
from backend.accounts.actors import Actor
from backend.artifacts import Artifacts
from backend.datasets import service as datasets
from backend.db import Sessions, unit_of_work
from backend.demo import seed
from backend.labeling import service as labeling
from backend.labeling.tables import Item
from backend.projects import service as projects
from backend.projects.tables import Project
from backend.registry import service as registry
from backend.runs import attempts
from backend.settings import Settings


def test_the_demo_project_is_made_once_and_has_everything_a_first_run_needs(
    sessions: Sessions, settings: Settings
) -> None:
    assert seed.ensure(sessions, settings)
    assert not seed.ensure(sessions, settings), "a second start must not make it again"
    anybody = Actor(0, "admin", is_admin=True)
    with unit_of_work(sessions) as session:
        assert session.scalar(select(func.count()).select_from(Project)) == 1
        project_id = projects.find_project(session, seed.PROJECT)
        assert project_id is not None
        (model,) = registry.list_models(session, anybody, project_id)
        assert model.name == seed.BASE_MODEL
        assert model.parameters > 300_000
        types = {version.row_type for version in datasets.list_project_versions(session, anybody, project_id)}
        assert types == {"prompt_completion", "preference", "unpaired", "prompt_only", "scored", "stepwise"}
        ((session_made, judged),) = labeling.list_sessions(session, anybody, project_id)
        assert session_made.name == seed.LABELING_SESSION
        assert judged == 0


def test_seeding_lets_nobody_in(sessions: Sessions, settings: Settings) -> None:
    seed.ensure(sessions, settings)
    with unit_of_work(sessions) as session:
        assert not accounts.has_admin(session), "whoever holds the setup link must still become the first admin"
        person = accounts.find_person(session, accounts.SYSTEM_EMAIL)
        assert person is not None
        assert not person.is_active
        assert person.password_hash is None
        assert person not in accounts.list_people(session, Actor(0, "admin", is_admin=True)), "nobody to let in"


def test_what_versions_and_models_are_made_of_is_never_swept(
    sessions: Sessions, settings: Settings, artifacts: Artifacts
) -> None:
    seed.ensure(sessions, settings)
    with unit_of_work(sessions) as session:
        needed = {sha256 for part in (datasets, registry, attempts) for sha256 in part.artifacts_needed(session)}
    assert artifacts.sweep(needed, older_than_seconds=-1) == 0
    assert artifacts.sweep(set(), older_than_seconds=-1) == len(needed)


def test_the_demo_asks_in_conversations_because_the_tiny_model_answers_only_those(
    sessions: Sessions, settings: Settings
) -> None:
    """In plain text its template's turns are missing, and it says nothing: DPO would start from silence."""
    seed.ensure(sessions, settings)
    with unit_of_work(sessions) as session:
        prompts = session.scalars(select(Item.prompt)).all()
    assert len(prompts) == 400
    assert all(isinstance(prompt, list) and prompt[-1]["role"] == "user" for prompt in prompts)
