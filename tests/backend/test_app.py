"""The composition: the whole web answers."""

from tests.conftest import MakeClient


def test_health_is_public_and_names_both_servers(make_client: MakeClient) -> None:
    answer = make_client(None).get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"database": "ok", "redis": "ok"})


def test_a_signed_in_browser_sees_home_and_a_stranger_is_sent_to_sign_in(make_client: MakeClient) -> None:
    assert "Sums and support" in make_client("engineer", browser=True).get("/").text
    answer = make_client(None).get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/")
