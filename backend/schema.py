"""All tables, so that Alembic and the tests see one metadata."""

from backend.accounts import tables as accounts
from backend.datasets import tables as datasets
from backend.db import Base
from backend.labeling import tables as labeling
from backend.projects import tables as projects
from backend.registry import tables as registry
from backend.runs import tables as runs

metadata = Base.metadata
TABLES = (accounts, projects, datasets, registry, runs, labeling)
