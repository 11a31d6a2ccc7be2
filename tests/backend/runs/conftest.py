"""A project with something to train."""

from pathlib import Path

import pytest

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.projects.service import ProjectName
from tests.backend.runs.material import Material, make_material


@pytest.fixture
def material(sessions: Sessions, engineer: Actor, project: ProjectName, tmp_path: Path) -> Material:
    """A model and ten pairs in ``project``."""
    with unit_of_work(sessions) as session:
        return make_material(session, engineer, project.id, tmp_path)
