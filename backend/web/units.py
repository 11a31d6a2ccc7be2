"""The dependency that gives a route its session: one request, one transaction, committed *before* the answer leaves."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend import db


def _session(request: Request) -> Iterator[Session]:
    with db.unit_of_work(request.app.state.sessions) as session:
        yield session


# scope="function": with FastAPI's default the code after ``yield`` runs after the response, so a failing commit would answer 200
UnitOfWork = Annotated[Session, Depends(_session, scope="function")]
