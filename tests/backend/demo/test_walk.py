from backend.accounts.actors import Actor
from backend.client import Studio
from backend.db import Sessions, unit_of_work
from backend.demo import seed, walk
from backend.labeling import service as labeling
from backend.settings import Settings


def test_the_guests_may_do_their_work_and_no_more(sessions: Sessions, settings: Settings, served: str) -> None:
    seed.ensure(sessions, settings)
    with unit_of_work(sessions) as session:
        guests = walk.let_in(session)
    assert guests is not None
    with Studio(served, guests.engineer) as studio:
        assert [project["name"] for project in studio.projects()] == [seed.PROJECT]
        assert {model["name"] for model in studio.models(guests.project_id)} == {seed.BASE_MODEL}
    with unit_of_work(sessions) as session:
        again = walk.let_in(session)
    assert again is not None
    assert again.project_id == guests.project_id


def test_a_scripted_annotator_judges_until_nothing_is_left(sessions: Sessions, settings: Settings, served: str) -> None:
    seed.ensure(sessions, settings)
    with unit_of_work(sessions) as session:
        guests = walk.let_in(session)
        assert guests is not None
        admin = Actor(0, "admin", is_admin=True)
        ((asked, _),) = labeling.list_sessions(session, admin, guests.project_id)
    with Studio(served, guests.engineer) as studio:
        small = studio.create_labeling_session(
            guests.project_id,
            "Small",
            overlap=2,
            items=[
                {"prompt": f"What is {n}+11?", "completions": [f"Answer: {n + 11}.", f"Answer: {n + 12}."]}
                for n in range(20, 26)
            ],
        )
    assert [walk.judge_all(served, token, small["id"], n) for n, token in enumerate(guests.annotators)] == [6, 6]
    assert walk.judge_all(served, guests.annotators[0], small["id"], 0) == 0
    with Studio(served, guests.engineer) as studio:
        frozen = studio.freeze(small["id"], "Small sums")
        rows = list(studio.rows(frozen["version_id"]))
    assert len(rows) >= 4, "both prefer the right sum, but for a careless answer now and then"
    assert asked.id != small["id"]
