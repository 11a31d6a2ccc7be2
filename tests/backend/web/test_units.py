"""More requests at once than there are connections: nobody stands still."""

from concurrent.futures import ThreadPoolExecutor

import httpx
from sqlalchemy import text

from backend.accounts.access import Viewer
from backend.accounts.actors import Actor
from backend.web.units import AT_ONCE, UnitOfWork
from tests.conftest import MakeClient


def test_a_hundred_requests_at_once_all_come_through(
    app: object, served: str, make_client: MakeClient, engineer: Actor
) -> None:
    @app.get("/api/v1/slow")  # type: ignore[attr-defined]
    def slow(actor: Viewer, session: UnitOfWork) -> str:
        session.execute(text("select pg_sleep(0.05)"))
        return "done"

    assert AT_ONCE < 40  # the pool's connections, and the threads
    headers = {"Authorization": make_client(engineer).headers["Authorization"]}

    def ask(_: int) -> int:
        return httpx.get(f"{served}/api/v1/slow", headers=headers, timeout=60, trust_env=False).status_code

    with ThreadPoolExecutor(100) as pool:
        assert set(pool.map(ask, range(200))) == {200}
