"""From the setup link to a colleague at work, in two browsers; and once more without JavaScript, on a phone."""

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from backend.accounts import service
from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from tests.conftest import PASSWORD
from tests.journeys.conftest import Axe, OpenPage, Site, Watch

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("width", "javascript"), [(1440, True), (390, False)])
def test_from_the_setup_link_to_a_colleague_at_work(
    browser: Browser, site: Site, sessions: Sessions, axe: Axe, width: int, javascript: bool
) -> None:
    def person(expected: tuple[str, ...] = ()) -> tuple[Page, Watch]:
        context = browser.new_context(
            base_url=site.url, viewport={"width": width, "height": 844}, java_script_enabled=javascript, locale="en-US"
        )
        watch = Watch(site.url, expected=expected)
        context.on("page", watch.on)
        return context.new_page(), watch

    ada, ada_watch = person(expected=("503",))
    ada.goto("/")
    expect(ada.get_by_role("heading", name="This studio has no admin yet.")).to_be_visible()
    with unit_of_work(sessions) as session:
        link = service.make_setup_link(session)
    ada.goto(link)
    if javascript:
        axe(ada)
    ada.get_by_label("Name").fill("Ada")
    ada.get_by_label("E-mail address").fill("ada@example.org")
    ada.get_by_label("Password").fill(PASSWORD)
    ada.get_by_role("button", name="Create the admin").click()
    expect(ada).to_have_url(f"{site.url}/")

    ada.goto("/projects")
    ada.get_by_label("Name").fill("Support tone")
    ada.get_by_label("Goal").fill("Answers that a customer would thank us for.")
    ada.get_by_role("button", name="Make the project").click()
    expect(ada).to_have_url(re.compile(r"/\?project=\d+$"))

    ada.goto("/people")
    ada.get_by_label("Name").fill("Wren")
    ada.get_by_label("E-mail address").fill("wren@example.org")
    ada.get_by_label("Role", exact=True).select_option("annotator")
    ada.get_by_role("button", name="Add and make the link").click()
    invitation = ada.get_by_label("The link for Wren").input_value()
    if javascript:
        axe(ada)

    wren, wren_watch = person(expected=("403", "404"))
    wren.goto(invitation)
    wren.get_by_label("Password").fill(PASSWORD + " too")
    wren.get_by_role("button", name="Set the password").click()
    expect(wren).to_have_url(f"{site.url}/")
    wren.goto("/people")
    expect(wren.get_by_role("heading", name="You are known, but may not do this.")).to_be_visible()
    wren.goto(invitation)
    expect(wren.get_by_role("heading", name="This link was used already, or its time is over.")).to_be_visible()

    ada.goto("/people")
    expect(ada.get_by_role("row", name=re.compile("Wren"))).to_contain_text("annotator in Support tone")
    assert not ada_watch.complaints + wren_watch.complaints


def test_a_token_is_made_in_the_browser_and_signing_out_ends_the_session(
    open_page: OpenPage, admin: Actor, axe: Axe
) -> None:
    page = open_page(admin, "/account")
    page.get_by_text("Make a token").click()
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("Your password").fill(PASSWORD)
    page.get_by_role("button", name="Make the token").click()
    assert page.get_by_label("The new API token").input_value().startswith("sts_")
    axe(page)
    page.get_by_role("button", name="Sign out", exact=True).click()
    expect(page).to_have_url(re.compile(r"/sign-in$"))
    axe(page)
    page.get_by_label("E-mail address").fill("ada@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign out", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_pages_of_people_are_accessible(
    open_page: OpenPage, admin: Actor, axe: Axe, width: int, scheme: str
) -> None:
    page = open_page(admin, "/projects", width=width, scheme=scheme)  # type: ignore[arg-type]
    for path in ("/projects", "/projects/1/members", "/people", "/account", "/reference"):
        page.goto(path)
        axe(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} scrolls sideways"
