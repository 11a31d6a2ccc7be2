"""Labeling over HTTP: what each role reaches, that annotators are blind, and the judging page without JavaScript."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from backend.accounts.actors import Permission
from backend.projects.service import ProjectName
from tests.conftest import MakeActor, MakeClient

CANARY = "canary"


def body(n: int = 4, overlap: int = 2) -> dict[str, Any]:
    return {
        "name": "Round 1",
        "guidelines": "Prefer the **right** one.",
        "overlap": overlap,
        "items": [
            {
                "prompt": f"Question {i}",
                "completions": [f"*first* {i}", f"the second one {i}"],
                "models": ["canary-a", "canary-b"],
            }
            for i in range(n)
        ],
    }


@pytest.fixture
def labeling(make_client: MakeClient, project: ProjectName) -> int:
    made = make_client("engineer").post(f"/api/v1/projects/{project.id}/labeling-sessions", json=body())
    assert made.status_code == 201, made.text
    assert made.json()["items"] == 4
    return int(made.json()["id"])


def begin(client: TestClient, labeling: int) -> dict[str, Any]:
    answer = client.post(f"/api/v1/labeling-sessions/{labeling}/acknowledge", json={"version": 1})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def judge(client: TestClient, desk: dict[str, Any], **answer: Any) -> Any:
    a = desk["assignment"]
    sent = {"kind": "comparison", "idempotency_key": a["idempotency_key"], **answer}
    return client.post(f"/api/v1/assignments/{a['uuid']}/judgment", json=sent)


def test_the_whole_way_over_http(make_client: MakeClient, labeling: int) -> None:
    engineer = make_client("engineer")
    for who in (make_client("annotator"), make_client("annotator")):
        desk = begin(who, labeling)
        while desk["assignment"]:
            left = desk["assignment"]["completions"][0]["content"]
            answer = judge(who, desk, point=1 if left.startswith("*first*") else 7, reason="it is right")
            assert answer.status_code == 201, answer.text
            desk = answer.json()["desk"]
        assert desk["progress"]["done"] == 4
    preview = engineer.get(f"/api/v1/labeling-sessions/{labeling}/freeze").json()
    assert (preview["kept"], preview["rows"]) == (4, 4)
    frozen = engineer.post(f"/api/v1/labeling-sessions/{labeling}/freeze", json={"dataset_name": "Preferences"})
    assert frozen.status_code == 201, frozen.text
    assert frozen.json()["rows"] == 4
    assert frozen.json()["origin"]["labeling_session_id"] == labeling
    record = engineer.get(f"/api/v1/labeling-sessions/{labeling}/judgments").json()["items"]
    assert len(record) == 8
    assert {one["strength"] for one in record} == {-3}
    went = engineer.get(f"/api/v1/judgments/{record[0]['uuid']}/rows").json()
    assert went == [{"version_id": frozen.json()["version_id"], "position": 0}]
    quality = engineer.get(f"/api/v1/labeling-sessions/{labeling}/quality").json()
    assert quality["judgments"] == 8
    assert quality["by_count"] == [0, 0, 4]


def test_answers_are_checked_and_repetitions_are_harmless(make_client: MakeClient, labeling: int) -> None:
    annotator = make_client("annotator")
    desk = begin(annotator, labeling)
    assert judge(annotator, desk).status_code == 422, "unset is not a tie"
    assert judge(annotator, desk, point=4).status_code == 422, "a tie is explained"
    assert judge(annotator, desk, point=8).status_code == 422
    first = judge(annotator, desk, point=2)
    again = judge(annotator, desk, point=2)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["judgment"] == again.json()["judgment"]
    assert again.json()["repeated"]
    other = judge(annotator, desk, point=6)
    assert other.status_code == 422
    assert other.json()["type"] == "/problems/idempotency-mismatch"
    strange = {**desk, "assignment": {**desk["assignment"], "idempotency_key": "00000000-0000-4000-8000-000000000000"}}
    assert judge(annotator, strange, point=2).status_code == 422
    assert judge(make_client("annotator"), desk, point=2).status_code == 404, "another's assignment"


def test_a_late_answer_is_refused_and_kept(make_client: MakeClient, labeling: int) -> None:
    annotator, engineer = make_client("annotator"), make_client("engineer")
    desk = begin(annotator, labeling)
    assert engineer.post(f"/api/v1/labeling-sessions/{labeling}/state", json={"state": "closed"}).status_code == 200
    late = judge(annotator, desk, point=2, reason="almost done")
    assert late.status_code == 409
    assert late.json()["type"] == "/problems/assignment-lost"
    assert engineer.get(f"/api/v1/labeling-sessions/{labeling}/quality").json()["late"] == 1


def test_undo_and_skip_over_http(make_client: MakeClient, labeling: int) -> None:
    annotator = make_client("annotator")
    desk = begin(annotator, labeling)
    assert judge(annotator, desk, point=2).status_code == 201
    back = annotator.post(f"/api/v1/labeling-sessions/{labeling}/undo")
    assert back.json()["assignment"]["completions"] == desk["assignment"]["completions"]
    a = back.json()["assignment"]
    skip = {"kind": "skip", "skip_reason": "language", "idempotency_key": a["idempotency_key"]}
    assert annotator.post(f"/api/v1/assignments/{a['uuid']}/judgment", json=skip).status_code == 201
    mine = annotator.get(f"/api/v1/labeling-sessions/{labeling}/my-judgments").json()["items"]
    assert [(one["kind"], one["undone"]) for one in mine] == [("skip", False), ("comparison", True)]
    assert annotator.post(f"/api/v1/assignments/{a['uuid']}/heartbeat").status_code == 409


def test_many_items_can_be_added_later(make_client: MakeClient, labeling: int) -> None:
    engineer = make_client("engineer")
    more = {"items": body(3)["items"] + [{"prompt": "Same", "completions": ["x", "x"]}]}
    assert engineer.post(f"/api/v1/labeling-sessions/{labeling}/items", json=more).json() == {
        "added": 3,
        "identical": 1,
    }
    page = engineer.get(f"/api/v1/labeling-sessions/{labeling}/items?limit=5").json()
    assert len(page["items"]) == 5
    rest = engineer.get(f"/api/v1/labeling-sessions/{labeling}/items?after={page['next']}").json()
    assert len(rest["items"]) == 2


# ---- blindness: every route that an annotator can call, called ------------------------------------------------------------


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        for inner in getattr(getattr(route, "original_router", None), "routes", [route]):
            if isinstance(inner, APIRoute):
                prefix = getattr(getattr(route, "include_context", None), "prefix", "") or ""
                for method in inner.methods or ():
                    yield method, prefix + inner.path


def walk(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)
    else:
        yield str(value)


@pytest.mark.parametrize("as_browser", [False, True], ids=["token", "browser"])
def test_no_answer_to_an_annotator_names_a_model(
    app: FastAPI, make_client: MakeClient, make_actor: MakeActor, project: ProjectName, labeling: int, as_browser: bool
) -> None:
    """Walk every route of the application as an annotator whose colleague has judged with a reason: no canary comes back."""
    other = make_client("annotator")
    assert judge(other, begin(other, labeling), point=2, reason="canary-reason").status_code == 201
    actor = make_actor("annotator")
    begin(make_client(actor), labeling)
    assert judge(make_client(actor), begin(make_client(actor), labeling), point=3).status_code == 201
    client = make_client(actor, browser=as_browser)
    reached = set()
    for method, path in sorted(routes(app)):
        if "sign-out" in path or "setup" in path or "/events" in path:
            continue
        address = path.replace("{project_id}", str(project.id)).replace("{labeling_session_id}", str(labeling))
        address = re.sub(r"\{[^}]+\}", "1", address)
        answer = client.request(method, address, json={} if method in ("POST", "PUT", "PATCH") else None)
        assert CANARY not in answer.text, f"{method} {path}"
        assert CANARY not in unquote(str(answer.headers)), f"{method} {path}"
        if answer.status_code == 200:
            reached.add(path)
            if "application/json" in answer.headers.get("content-type", ""):
                assert not any(CANARY in said for said in walk(json.loads(answer.text)))
    assert any(path.endswith("/next") for path in reached), reached
    if as_browser:
        assert {"/judge", "/judge/{labeling_session_id}", "/judge/{labeling_session_id}/history"} <= reached


def test_annotators_reach_only_their_own_pages(make_client: MakeClient, project: ProjectName, labeling: int) -> None:
    annotator = make_client("annotator")
    for path in ("", "/items", "/judgments", "/quality", "/freeze"):
        assert annotator.get(f"/api/v1/labeling-sessions/{labeling}{path}").status_code == 403, path
    page = make_client("annotator", browser=True)
    assert page.get(f"/labeling/{labeling}").status_code == 403
    assert page.get(f"/projects/{project.id}/labeling").status_code == 200
    assert page.get("/judge").status_code == 200
    assert make_client("outsider").post(f"/api/v1/labeling-sessions/{labeling}/next").status_code in (403, 404)
    assert Permission.VIEW != Permission.JUDGE


# ---- pages ----------------------------------------------------------------------------------------------------------------


def field(html: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found, name
    return found[1]


def answers(html: str) -> dict[str, str]:
    return {"assignment": field(html, "assignment"), "idempotency_key": field(html, "idempotency_key")}


def test_judging_works_without_javascript(make_client: MakeClient, labeling: int) -> None:
    client = make_client("annotator", browser=True)
    page = f"/judge/{labeling}"
    # not the version in force: the page shows the one that is
    stale = client.post(f"{page}/acknowledge", data={"version": "9"}, follow_redirects=False)
    assert (stale.status_code, stale.headers["location"]) == (303, page)
    first = client.get(page).text
    assert "Read this first" in first
    assert "<strong>right</strong>" in first
    assert client.post(f"{page}/acknowledge", data={"version": "1"}).status_code == 303
    html = client.get(page).text
    assert "<em>first</em> 0" in html, "model text is rendered"
    assert 'name="point" value="4" checked' not in html
    assert " checked" not in html, "nothing is chosen beforehand"
    unset = client.post(f"{page}/judgment", data=answers(html))
    assert unset.status_code == 422
    assert "not a tie" in unset.text
    tie = client.post(f"{page}/judgment", data={**answers(html), "point": "4", "reason": "kept words"})
    assert tie.status_code == 422
    assert "both good, or both bad" in tie.text
    assert "kept words" in tie.text, "what was typed stays"
    sent = client.post(f"{page}/judgment", data={**answers(html), "point": "4", "tie_kind": "both_bad"})
    assert sent.status_code == 303
    twice = client.post(f"{page}/judgment", data={**answers(html), "point": "4", "tie_kind": "both_bad"})
    assert twice.status_code == 303
    html = client.get(page).text
    assert "<b>1</b> of 4" in html
    assert client.post(f"{page}/judgment", data={**answers(html), "skip_reason": "language"}).status_code == 303
    assert client.post(f"{page}/undo").status_code == 303
    assert field(client.get(page).text, "assignment") != field(html, "assignment")
    history = client.get(f"{page}/history").text
    assert "tie, both bad" in history
    assert "taken back" in history


def test_the_island_gets_the_next_assignment_in_the_answer(make_client: MakeClient, labeling: int) -> None:
    client = make_client("annotator", browser=True)
    client.post(f"/judge/{labeling}/acknowledge", data={"version": "1"})
    html = client.get(f"/judge/{labeling}").text
    island = {"X-Island": "compare-completions", "Accept": "text/html, application/json"}
    sent = client.post(f"/judge/{labeling}/judgment", data={**answers(html), "point": "1"}, headers=island)
    assert sent.status_code == 200
    assert field(sent.text, "assignment") != field(html, "assignment")
    unset = client.post(f"/judge/{labeling}/judgment", data=answers(sent.text), headers=island)
    assert unset.status_code == 422
    assert unset.headers["content-type"] == "application/problem+json"


def test_a_session_is_made_from_pasted_rows(make_client: MakeClient, project: ProjectName) -> None:
    client = make_client("engineer", browser=True)
    new = f"/projects/{project.id}/labeling/new"
    assert client.get(new).status_code == 200
    bad = client.post(
        new, data={"name": "P", "rows": '{"prompt": "a", "completions": ["x", "y"]}\n{"prompt": "b"}', "overlap": "1"}
    )
    assert bad.status_code == 422
    assert "Line 2" in bad.text
    assert client.post(new, data={"name": "P", "overlap": "1"}).status_code == 422
    good = client.post(new, data={"name": "P", "rows": '{"prompt": "a", "completions": ["x", "y"]}', "overlap": "1"})
    assert good.status_code == 303, good.text
    page = client.get(good.headers["location"])
    assert page.status_code == 200
    assert "No row to freeze yet" in page.text
    assert client.get(f"/projects/{project.id}/labeling").status_code == 200


def test_the_session_page_and_its_freeze_button(make_client: MakeClient, labeling: int) -> None:
    for who in (make_client("annotator"), make_client("annotator")):
        desk = begin(who, labeling)
        for point in (2, 3, 1, 7):
            desk = judge(who, desk, point=point).json()["desk"]
    client = make_client("engineer", browser=True)
    page = client.get(f"/labeling/{labeling}?minimum=1")
    assert page.status_code == 200
    assert "8 of 8 judgments" in page.text
    frozen = client.post(f"/labeling/{labeling}/freeze", data={"rule": "majority", "ties": "keep", "minimum": "1"})
    if "No row to freeze yet" in page.text:  # the sides are drawn: the two may have contradicted each other everywhere
        assert frozen.status_code == 409
    else:
        assert frozen.status_code == 303, frozen.text
        assert frozen.headers["location"].startswith("/versions/")
    assert client.post(f"/labeling/{labeling}/guidelines", data={"words": "Shorter."}).status_code == 303
    assert client.post(f"/labeling/{labeling}/state", data={"state": "paused"}).status_code == 303
    viewer = make_client("viewer", browser=True)
    seen = viewer.get(f"/labeling/{labeling}").text
    assert "Annotators</h2>" not in seen
    assert 'action="/labeling' not in seen.replace(f'action="/labeling/{labeling}#freeze"', "")
