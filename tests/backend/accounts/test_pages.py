"""Setup, sign-in, account and people as a browser sees them."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.accounts import service
from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from tests.conftest import PASSWORD, MakeClient

SAME_SITE = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}


@pytest.fixture
def stranger(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, headers=SAME_SITE)


def _csrf(page: str) -> str:
    found = re.search(r'name="csrf" content="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_until_an_admin_exists_every_page_says_how_to_get_the_link(stranger: TestClient) -> None:
    for path in ("/", "/sign-in", "/people", "/projects", "/api/v1/projects"):
        answer = stranger.get(path)
        assert answer.status_code == 503, path
        assert "studio admin create-link" in answer.text
    assert stranger.get("/healthz").status_code == 200


def test_the_setup_link_creates_one_admin_signs_in_and_is_spent(stranger: TestClient, sessions: Sessions) -> None:
    with unit_of_work(sessions) as session:
        path = service.make_setup_link(session)
    assert "Create the admin" in stranger.get(path).text
    weak = stranger.post(path, data={"name": "Ada", "email": "ada@example.org", "password": "password1234"})
    assert weak.status_code == 422
    assert "first that people try" in weak.text
    assert 'value="ada@example.org"' in weak.text
    made = stranger.post(path, data={"name": "Ada", "email": "ada@example.org", "password": PASSWORD})
    assert (made.status_code, made.headers["location"]) == (303, "/")
    assert "Ada" in stranger.get("/").text
    for again in (stranger.get(path), stranger.post(path, data={"password": PASSWORD})):
        assert again.status_code in (403, 404)
    with unit_of_work(sessions) as session, pytest.raises(service.AdminExists):
        service.make_setup_link(session)


def test_sign_in_rotates_the_cookie_and_sign_out_kills_it(stranger: TestClient, admin: Actor) -> None:
    stranger.cookies.set("studio", "planted-by-somebody-else")
    answer = stranger.post("/sign-in", data={"email": "ADA@example.org", "password": PASSWORD, "next": "/people?x=1"})
    assert answer.headers["location"] == "/people?x=1"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    key = cookie.split(";")[0].removeprefix("studio=")
    assert key != "planted-by-somebody-else"
    stranger.cookies.clear()
    stranger.cookies.set("studio", key)
    page = stranger.get("/")
    assert page.status_code == 200
    out = stranger.post("/sign-out", data={"csrf": _csrf(page.text)})
    assert out.headers["location"] == "/sign-in"
    stranger.cookies.set("studio", key)
    assert stranger.get("/").headers["location"] == "/sign-in?next=/"


@pytest.mark.parametrize("next_", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)"])
def test_sign_in_never_leads_elsewhere(stranger: TestClient, admin: Actor, next_: str) -> None:
    answer = stranger.post("/sign-in", data={"email": "ada@example.org", "password": PASSWORD, "next": next_})
    assert answer.headers["location"] == "/"


def test_wrong_passwords_are_refused_and_then_asked_to_wait(stranger: TestClient, admin: Actor) -> None:
    answers = [
        stranger.post("/sign-in", data={"email": "ada@example.org", "password": f"wrong password {n}"})
        for n in range(6)
    ]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429]
    right = stranger.post("/sign-in", data={"email": "ada@example.org", "password": PASSWORD})
    assert right.status_code == 429


def test_an_unsafe_request_needs_the_sessions_own_csrf_token(make_client: MakeClient, admin: Actor) -> None:
    client = make_client(admin, browser=True)
    good = client.headers.pop("X-CSRF-Token")
    for csrf in ("", "guessed", make_client(admin, browser=True).headers["X-CSRF-Token"]):
        assert client.post("/projects", data={"name": "Forged", "csrf": csrf}).status_code == 403
    assert client.post("/projects", data={"name": "Mine", "csrf": good}).status_code == 303


def test_a_token_made_on_the_account_page_is_shown_once_and_works(
    make_client: MakeClient, admin: Actor, app: FastAPI
) -> None:
    client = make_client(admin, browser=True)
    form = {"name": "laptop", "days": "30", "scopes": ["view"], "password": PASSWORD}
    assert "The password is wrong" in client.post("/account/tokens", data={**form, "password": "not it, sorry"}).text
    page = client.post("/account/tokens", data=form)
    assert page.status_code == 201
    found = re.search(r"sts_[\w-]{43}", page.text)
    assert found is not None
    assert found[0] not in client.get("/account").text
    api = TestClient(app, headers={"Authorization": f"Bearer {found[0]}"})
    assert api.get("/api/v1/me").json()["scopes"] == ["view"]
    assert api.get("/api/v1/people").status_code == 403  # the person may, the token may not


def test_an_invited_person_sets_a_password_and_lands_in_the_project(
    make_client: MakeClient, admin: Actor, stranger: TestClient
) -> None:
    client = make_client(admin, browser=True)
    client.post("/projects", data={"name": "Tone"})
    project = client.get("/api/v1/projects").json()["items"]
    tone = next(each["id"] for each in project if each["name"] == "Tone")
    page = client.post(
        "/people", data={"name": "Wren", "email": "wren@example.org", "role": "annotator", "project": str(tone)}
    )
    link = re.search(r"http://testserver(/setup/[\w-]+)", page.text)
    assert link is not None
    welcome = stranger.get(link[1]).text
    assert ("Welcome, Wren" in welcome, "API tokens" in welcome) == (True, False)
    assert stranger.post(link[1], data={"password": PASSWORD}).status_code == 303
    assert stranger.get("/api/v1/me").json()["roles"] == {str(tone): "annotator"}
    assert stranger.get("/people").status_code == 403
    people = client.post(f"/people/{stranger.get('/api/v1/me').json()['id']}/invitation").text
    assert "API tokens end" in people
    renewed = re.search(r"http://testserver(/setup/[\w-]+)", people)
    assert renewed is not None
    assert "ends your API tokens" in stranger.get(renewed[1]).text
    again = client.post("/people", data={"name": "Wren", "email": "WREN@example.org", "role": "viewer", "project": ""})
    assert (again.status_code, "has an account" in again.text) == (409, True)


def test_keeping_somebody_out_ends_their_browser_and_tokens_at_once(
    make_client: MakeClient, admin: Actor, engineer: Actor
) -> None:
    browser, api, boss = make_client(engineer, browser=True), make_client(engineer), make_client(admin, browser=True)
    assert (browser.get("/").status_code, api.get("/api/v1/me").status_code) == (200, 200)
    assert boss.post(f"/people/{engineer.person_id}/active", data={"active": "false"}).status_code == 303
    assert (browser.get("/").status_code, api.get("/api/v1/me").status_code) == (303, 401)
    assert boss.post(f"/people/{admin.person_id}/active", data={"active": "false"}).status_code == 409
