"""Headers of every answer, and the refusal of other sites."""

import re

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.accounts.access import Public
from backend.accounts.actors import Actor
from backend.app import create_app
from backend.db import Sessions
from backend.settings import Settings
from tests.conftest import PASSWORD, MakeClient

POLICY = (
    "default-src 'none'; script-src 'nonce-N' 'strict-dynamic'; style-src 'self' 'nonce-N'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@pytest.mark.parametrize("path", ["/", "/nowhere", "/healthz", "/api/v1/me", "/static/nothing.js", "/broken"])
def test_every_answer_carries_the_security_headers(app: FastAPI, make_client: MakeClient, path: str) -> None:
    @app.get("/broken")
    def broken(actor: Public) -> None:
        raise RuntimeError("nobody foresaw this")

    answer = make_client("engineer", browser=True).get(path)
    if path == "/broken":
        assert answer.status_code == 500
        assert "nobody foresaw" not in answer.text
    found = {name: re.sub(r"nonce-[\w-]+", "nonce-N", answer.headers[name]) for name in HEADERS}
    assert found == HEADERS
    assert "strict-transport-security" not in answer.headers


def test_a_nonce_is_fresh_and_the_pages_scripts_carry_it(make_client: MakeClient) -> None:
    client = make_client("engineer", browser=True)
    nonces = set()
    for _ in range(2):
        page = client.get("/")
        nonce = re.search(r"'nonce-([\w-]+)'", page.headers["content-security-policy"])
        assert nonce is not None
        scripts = re.findall(r"<script[^>]*>", page.text)
        assert scripts
        assert all(f'nonce="{nonce[1]}"' in script for script in scripts)
        nonces.add(nonce[1])
    assert len(nonces) == 2


def test_built_files_are_cached_for_good(app: FastAPI, make_client: MakeClient) -> None:
    from backend.web.rendering import FRONTEND

    built = next((FRONTEND / "dist").glob("*.css"), None)
    if built is None:
        pytest.skip("the frontend is not built")
    assert (
        make_client(None).get(f"/static/{built.name}").headers["cache-control"] == "public, max-age=31536000, immutable"
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://testserver"}, 303),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
def test_unsafe_requests_with_a_cookie_come_from_our_own_pages(
    make_client: MakeClient, admin: Actor, headers: dict[str, str], status: int
) -> None:
    client = make_client(admin, browser=True)
    del client.headers["Sec-Fetch-Site"]
    answer = client.post("/projects", data={"name": f"From {headers}"}, headers=headers)
    assert answer.status_code == status


def test_signing_somebody_in_from_another_site_is_refused(app: FastAPI, admin: Actor) -> None:
    attacker = TestClient(app, follow_redirects=False, headers={"Origin": "https://evil.example"})
    form = {"email": "ada@example.org", "password": PASSWORD}
    assert attacker.post("/sign-in", data=form).status_code == 403


def test_a_cookie_and_a_token_together_are_refused(make_client: MakeClient, admin: Actor) -> None:
    client = make_client(admin)
    client.cookies.set("studio", "whatever")
    assert client.get("/api/v1/me").status_code == 422


def test_https_makes_the_cookie_secure_and_bound_to_the_host(
    settings: Settings, sessions: Sessions, admin: Actor
) -> None:
    app = create_app(settings.model_copy(update={"public_url": "https://studio.example"}), sessions)
    client = TestClient(app, base_url="https://studio.example", follow_redirects=False)
    answer = client.post(
        "/sign-in", data={"email": "ada@example.org", "password": PASSWORD}, headers={"Sec-Fetch-Site": "same-origin"}
    )
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-studio=")
    assert {"Secure", "HttpOnly", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "domain" not in cookie.lower()
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert client.get("/").status_code == 200
