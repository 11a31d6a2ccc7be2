"""Two annotators in two browsers judge one session at once; double clicks, second tabs, reloads and undos; then the record."""

import threading
from typing import Any

import pytest
from playwright.sync_api import Page, Response, expect
from sqlalchemy import text

from backend.accounts.actors import Actor
from backend.db import Sessions, unit_of_work
from backend.labeling import judging, service
from backend.labeling.judgments import ItemDraft
from backend.projects.service import ProjectName
from tests.conftest import MakeActor
from tests.journeys.conftest import Axe, OpenPage

ITEMS = 6
CANARIES = ("canary-model-a", "canary-model-b")


@pytest.fixture
def labeling(sessions: Sessions, engineer: Actor, project: ProjectName) -> int:
    with unit_of_work(sessions) as session:
        return service.create_session(
            session, engineer, project.id, name="Support tone", guidelines="Right before *kind*.", overlap=2,
            items=[
                ItemDraft(
                    prompt=f"Question {i}: what is {i} + {i}?",
                    completions=[f"**{2 * i}**\n\n```python\nprint({i} + {i})\n```", f"It is {2 * i + 1}, you should know that. " * 8],
                    models=list(CANARIES),
                )
                for i in range(ITEMS)
            ],
        ).id  # fmt: skip


def sit_down(page: Page) -> None:
    page.get_by_role("button", name="I have read this").click()
    ready(page)


def ready(page: Page) -> None:
    page.wait_for_selector("compare-completions:defined")
    expect(page.locator("#answer")).to_have_attribute("novalidate", "")


def assignment(page: Page) -> str:
    return page.locator("#answer [name=assignment]").input_value()


def heard(page: Page) -> list[str]:
    """Everything this page's browser receives from now on."""
    bodies: list[str] = []

    def listen(response: Response) -> None:
        if response.status < 300 or response.status >= 400:
            try:
                bodies.append(response.text())
            except Exception as error:  # a body that the browser has dropped already
                bodies.append(f"unread: {error}")

    page.context.on("response", listen)
    return bodies


def rows(sessions: Sessions, sql: str) -> list[Any]:
    with sessions() as session:
        return list(session.execute(text(sql)).all())


def wait_for_count(page: Page, done: int) -> None:
    expect(page.locator(".mine b")).to_have_text(str(done))


def test_two_annotators_at_once(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor, axe: Axe
) -> None:
    """Both browsers live in one thread of Playwright, so their requests interleave click by click."""
    first, second = make_actor("annotator"), make_actor("annotator")
    judge = f"/judge/{labeling}"
    a, b = open_page(first, judge), open_page(second, judge)
    words = heard(a)
    sit_down(a)
    sit_down(b)
    axe(a)
    assert assignment(a) != assignment(b)

    # nothing is chosen, so nothing is sent, and the page says why
    a.keyboard.press("Enter")
    expect(a.locator(".acts .left")).to_have_text("not answered: 1 … 7")
    assert rows(sessions, "select count(*) from judgment") == [(0,)]

    # a reload and a second tab show the same assignment, and the draft is still there
    mine = assignment(a)
    a.keyboard.press("2")
    a.reload()
    ready(a)
    assert assignment(a) == mine
    expect(a.locator("[name=point][value='2']")).to_be_checked()
    tab = a.context.new_page()
    tab.goto(judge)
    ready(tab)
    assert assignment(tab) == mine

    # Enter twice, and the button twice, is one judgment
    with a.expect_response(lambda answer: answer.url.endswith("/judgment")):
        a.evaluate(
            """() => { const send = document.querySelector('.acts .btn.primary'); send.click(); send.click(); }"""
        )
    wait_for_count(a, 1)
    assert rows(sessions, "select count(*), min(point) from judgment") == [(1, 2)]
    # the other tab sends the same assignment with the same answer: recorded once
    tab.keyboard.press("2")
    tab.keyboard.press("Enter")
    wait_for_count(tab, 1)
    assert rows(sessions, "select count(*) from judgment") == [(1,)]
    assert assignment(tab) == assignment(a), "both tabs go on with the same next assignment"

    # a tie is asked
    b.keyboard.press("4")
    b.keyboard.press("Enter")
    expect(b.locator(".acts .left")).to_have_text("a tie: both good or both bad?")
    b.keyboard.press("-")
    b.keyboard.press("n")
    b.locator("#why textarea").fill("both guess")
    b.keyboard.press("Escape")
    b.keyboard.press("Enter")
    wait_for_count(b, 1)

    # undo: the same assignment's item with the same sides is back
    shown = a.locator(".side .raw").all_inner_texts() or a.locator(".side .raw").all_text_contents()
    before = a.locator(".asked").inner_text()
    a.keyboard.press("7")
    a.keyboard.press("Enter")
    wait_for_count(a, 2)
    a.keyboard.press("u")
    wait_for_count(a, 1)
    assert a.locator(".asked").inner_text() == before
    assert (a.locator(".side .raw").all_inner_texts() or a.locator(".side .raw").all_text_contents()) == shown
    expect(a.locator("[name=point]:checked")).to_have_count(0)
    a.keyboard.press("6")
    a.keyboard.press("Enter")
    wait_for_count(a, 2)

    # skip with a reason
    skipped = b.locator(".asked").inner_text()
    b.keyboard.press("s")
    b.keyboard.press("4")
    expect(b.locator(".asked")).not_to_have_text(skipped)
    wait_for_count(b, 1)

    # the rest, alternately
    for page in (a, b) * ITEMS:
        if page.locator("compare-completions").count():
            now = assignment(page)
            page.keyboard.press("3")
            page.keyboard.press("Enter")
            page.wait_for_function("now => document.querySelector('#answer [name=assignment]')?.value !== now", arg=now)
    expect(a.get_by_role("heading", name="Nothing is left for you here")).to_be_visible()

    record(sessions)
    for canary in CANARIES:
        assert not any(canary in body for body in words), "an annotator's browser was told who wrote it"
    assert any("Question" in body for body in words), "the listener heard the pages"


def record(sessions: Sessions) -> None:
    """What the log must hold after that hour: checked in SQL, not through the code that wrote it."""
    kinds = dict(rows(sessions, "select kind, count(*) from judgment group by kind"))
    assert kinds == {"comparison": 2 * ITEMS, "skip": 1, "undo": 1}
    # one item was skipped by one of two people, so one of its two slots stays open
    assert rows(sessions, "select count(*) from labeling_slot where state = 'judged'") == [(2 * ITEMS - 1,)]
    assert (
        rows(sessions, "select item_id from labeling_slot where state = 'judged' group by 1 having count(*) > 2") == []
    )
    assert rows(sessions, "select item_id, annotator_id from labeling_slot where state = 'judged' group by 1, 2 having count(*) > 1") == []  # fmt: skip
    assert rows(sessions, "select 1 from judgment where kind = 'comparison' and strength <> (point - 4) * (case shown_order[1] when 0 then 1 else -1 end)") == []  # fmt: skip
    assert rows(sessions, "select tie_kind, reason, count(*) from judgment where strength = 0 group by 1, 2") == [("both_bad", "both guess", 1)]  # fmt: skip
    assert rows(sessions, "select 1 from judgment where kind = 'comparison' and (active_ms is null or first_input_at < opened_at)") == []  # fmt: skip
    for _, balance in rows(sessions, "select annotator_id, sum(case shown_order[1] when 0 then 1 else -1 end) from judgment where kind = 'comparison' group by 1"):  # fmt: skip
        assert abs(balance) <= 4


def test_an_answer_survives_a_lost_connection(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor
) -> None:
    page = open_page(
        make_actor("annotator"), f"/judge/{labeling}", expected=("ERR_INTERNET_DISCONNECTED", "Failed to load")
    )
    sit_down(page)
    page.context.set_offline(True)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No connection: nothing was lost")).to_be_visible()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    wait_for_count(page, 1)
    assert rows(sessions, "select point from judgment") == [(1,)]


def test_changed_guidelines_are_read_before_the_next_assignment(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor, engineer: Actor, axe: Axe
) -> None:
    page = open_page(make_actor("annotator"), f"/judge/{labeling}")
    sit_down(page)
    with unit_of_work(sessions) as session:
        service.change_guidelines(session, engineer, labeling, "Shorter is better.")
    page.keyboard.press("5")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="The guidelines have changed")).to_be_visible()
    axe(page)
    sit_down(page)
    wait_for_count(page, 1)


def test_judging_on_a_phone(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor, axe: Axe
) -> None:
    page = open_page(make_actor("annotator"), f"/judge/{labeling}", width=390)
    sit_down(page)
    axe(page)
    page.locator("label:has([value='4'][name=point])").tap()
    page.locator("label:has([value='both_good'])").tap()
    axe(page)
    page.get_by_role("button", name="Send").tap()
    wait_for_count(page, 1)
    page.get_by_role("button", name="More …").tap()
    page.locator("#more").get_by_role("button", name="Skip").tap()
    page.get_by_role("button", name="outside what I know").tap()
    page.wait_for_function("document.querySelectorAll('compare-completions').length === 1")
    expect(page.locator(".asked")).to_contain_text("Question 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert rows(sessions, "select tie_kind, skip_reason from judgment order by id") == [
        ("both_good", None),
        (None, "outside_expertise"),
    ]


def test_judging_without_javascript(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor
) -> None:
    page = open_page(make_actor("annotator"), f"/judge/{labeling}", javascript=False)
    page.get_by_role("button", name="I have read this").click()
    page.locator("label:has([value='4'][name=point])").click()
    page.locator("label:has([value='both_bad'])").click()
    page.get_by_role("button", name="Send").click()
    wait_for_count(page, 1)
    page.locator(".acts").get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="the prompt is unclear").click()
    wait_for_count(page, 1)
    page.get_by_role("button", name="Undo last").click()
    expect(page.locator(".asked")).to_contain_text("Question 1")
    assert [kind for (kind,) in rows(sessions, "select kind from judgment order by id")] == [
        "comparison",
        "skip",
        "undo",
    ]


def test_the_session_page_shows_and_freezes(
    open_page: OpenPage, sessions: Sessions, labeling: int, make_actor: MakeActor, engineer: Actor, axe: Axe
) -> None:
    from backend.labeling.judgments import ComparisonSubmission, Receipt

    def judge_all(person: Actor) -> None:
        with unit_of_work(sessions) as session:
            judging.acknowledge_guidelines(session, person, labeling, 1)
            desk = judging.next_assignment(session, person, labeling)
        while desk.assignment:
            left = str(desk.assignment.completions[0].content).startswith("**")
            sent = ComparisonSubmission(idempotency_key=desk.assignment.idempotency_key, point=2 if left else 6)
            with unit_of_work(sessions) as session:
                receipt = judging.submit_judgment(session, person, desk.assignment.uuid, sent)
            assert isinstance(receipt, Receipt)
            desk = receipt.desk

    threads = [threading.Thread(target=judge_all, args=(make_actor("annotator"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page = open_page(engineer, f"/labeling/{labeling}")
    axe(page)
    expect(page.get_by_text("12 of 12 judgments")).to_be_visible()
    expect(page.get_by_text("Not measured yet: 6 items have two judgments")).to_be_visible()
    page.get_by_role("button", name="Freeze a version with 6 rows").click()
    page.wait_for_url("**/versions/*")
    assert rows(sessions, "select count(*), count(distinct position) from dataset_row_origin") == [(12, 6)]
