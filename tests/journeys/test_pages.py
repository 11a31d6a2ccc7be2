"""The pages of runs in a real browser: readable by all, usable by keyboard and on a phone, deaf to hostile text, and honest."""

import re
from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Page, expect

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.demo import specs as demo
from backend.labeling import service as labeling
from backend.labeling.judgments import ItemDraft
from backend.projects.service import ProjectName
from backend.runs.tables import Run, RunCompletion, RunEvent
from tests.journeys import content
from tests.journeys.conftest import Axe, OpenPage

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}} \u202egnp.exe & 'quotes\" <b>bold</b>"


@pytest.fixture
def day(sessions: Sessions, engineer: Actor, project: ProjectName) -> dict[str, int]:
    """Runs in every state, by name → id."""
    with unit_of_work(sessions) as session:
        return content.a_day_of_runs(session, engineer, project.id)


def _addresses(project_id: int, day: dict[str, int]) -> list[str]:
    dpo, lora = day["dpo"], day["lora"]
    return [
        f"/projects/{project_id}/runs",
        f"/projects/{project_id}/runs/new",
        f"/projects/{project_id}/runs/new?method=dpo",
        f"/projects/{project_id}/compare",
        f"/projects/{project_id}/compare?runs={dpo},{lora}",
        *(f"/runs/{lora}?tab={tab}" for tab in ("overview", "charts", "completions", "logs", "spec", "lineage")),
        *(f"/runs/{day[name]}" for name in ("failed", "cancelled", "silent", "running", "queued")),
        "/workers",
    ]


def _settled(page: Page) -> None:
    """The islands are there and have drawn."""
    page.wait_for_selector("html[data-ready]")
    page.wait_for_function(
        "() => [...document.querySelectorAll('run-chart')].every((chart) => chart.querySelector('canvas, .no-points'))"
    )
    expect(page.get_by_text("reading the points …")).to_have_count(0)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (1440, "dark"), (390, "light"), (390, "dark")])
def test_every_page_is_readable_by_all_and_fits(
    open_page: OpenPage,
    axe: Axe,
    engineer: Actor,
    project: ProjectName,
    day: dict[str, int],
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    page = open_page(engineer, "/account", width=width, scheme=scheme)
    for address in _addresses(project.id, day):
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        _settled(page)
        axe(page)
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{address} is {wider} px wider than the screen"


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (390, "light")])
def test_pages_of_data_models_and_people_are_readable_and_fit(
    open_page: OpenPage,
    axe: Axe,
    engineer: Actor,
    sessions: Sessions,
    project: ProjectName,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    with unit_of_work(sessions) as session:
        model = content.base_model(session, project.id).id
        item = ItemDraft(prompt="2 + 2?", completions=["4", "5"])
        judged = labeling.create_session(
            session, engineer, project.id, name="Sums", guidelines="", overlap=1, items=[item]
        ).id
        dataset = datasets.create_dataset(session, engineer, project.id, "pairs").id
        rows = [{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}]
        origin = {"kind": "labeling", "labeling_session_id": judged, "labeling_session": "Sums", "counts": {"items": 1}}
        version = datasets.create_version(
            session, dataset, rows, RowType.PREFERENCE, origin=origin, created_by=engineer.person_id
        ).id
    page = open_page("admin", "/account", width=width, scheme=scheme)
    in_project = ("datasets", "datasets/import", "models", "labeling", "labeling/new", "members")
    for address in (
        *(f"/projects/{project.id}/{name}" for name in in_project),
        f"/datasets/{dataset}",
        *(f"/versions/{version}?tab={tab}" for tab in ("rows", "statistics", "origin", "uses")),
        f"/models/{model}",
        f"/labeling/{judged}",
        *("/", "/judge", "/projects", "/people", "/account"),
    ):
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200, address
        _settled(page)
        axe(page)
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{address} is {wider} px wider than the screen"


def test_open_menus_tips_and_dialogs_are_readable_too(
    open_page: OpenPage, axe: Axe, engineer: Actor, day: dict[str, int]
) -> None:
    page = open_page(engineer, f"/runs/{day['dpo']}")
    _settled(page)
    page.get_by_role("button", name="What is accuracy?").click()
    expect(page.get_by_text("0.5 is a coin")).to_be_visible()
    axe(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("Project:")).click()
    axe(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys of this page")).to_contain_text("Clone")
    axe(page)


def test_keys_reach_every_corner(
    open_page: OpenPage, engineer: Actor, project: ProjectName, day: dict[str, int]
) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs")
    page.wait_for_selector("html[data-ready]")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Go to the content")).to_be_focused()
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Go to").fill("lora")
    expect(page.locator("#go-list li").first).to_contain_text("DPO with LoRA")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/runs/{day['lora']}")
    _settled(page)
    chart = page.locator(".plot-area").first
    chart.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".readout").first).to_contain_text("step")
    page.keyboard.press("c")
    page.wait_for_url(f"**/runs/new?clone={day['lora']}")
    page.wait_for_selector("spec-form form")
    page.locator("#spec-optimization-steps").fill("1?")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_theme_is_remembered_before_the_first_paint(open_page: OpenPage, engineer: Actor) -> None:
    page = open_page(engineer, "/workers")
    page.wait_for_selector("html[data-ready]")
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload(wait_until="commit")
    page.wait_for_selector("body", state="attached")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "dark"


def test_what_a_model_wrote_stays_text(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, day: dict[str, int]
) -> None:
    run_id = day["running"]
    with unit_of_work(sessions) as session:
        run = session.get_one(Run, run_id)
        run.name = HOSTILE
        run.seq += 1
        session.add(
            RunEvent(run_id=run_id, seq=run.seq, kind="log", attempt=1, data={"level": "error", "text": HOSTILE})
        )
        for step in (0, 60):
            row = session.get_one(RunCompletion, (run_id, step, 0))
            row.prompt, row.completion = HOSTILE, f"{HOSTILE} {step}"
    page = open_page(engineer, "/account")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    addresses = [f"/runs/{run_id}?tab={tab}" for tab in ("overview", "logs", "completions")]
    addresses += [f"/runs/{run_id}?tab=completions&step=60&against=0", f"/projects/{project.id}/runs", "/workers"]
    addresses.append(f"/projects/{project.id}/compare?runs={run_id},{day['dpo']}")
    for address in addresses:
        page.goto(address)
        _settled(page)
        expect(page.get_by_text("<img src=x onerror=alert(1)>").first).to_be_visible()
        assert page.locator("main img").count() == 0, address
    page.keyboard.press("Control+k")
    page.get_by_role("combobox", name="Go to").fill("img")
    expect(page.locator("#go-list li").filter(has_text="<img")).to_have_count(1)


def test_difference_of_two_steps_is_marked(open_page: OpenPage, engineer: Actor, day: dict[str, int]) -> None:
    page = open_page(engineer, f"/runs/{day['dpo']}?tab=completions&step=100")
    page.wait_for_selector("html[data-ready]")
    page.keyboard.press("d")
    page.wait_for_url("**against=0")
    expect(page.locator("word-diff .diffed").first).to_be_visible()
    expect(page.locator("word-diff del").first).to_be_visible()
    expect(page.locator(".opened .sub").first).to_contain_text("word")


def test_charts_say_nan_and_missing_in_words(open_page: OpenPage, engineer: Actor, day: dict[str, int]) -> None:
    page = open_page(engineer, f"/runs/{day['failed']}?tab=charts")
    _settled(page)
    expect(page.get_by_text("1 value not a number, first at step 30")).to_be_visible()
    page.goto(f"/runs/{day['failed']}")
    expect(page.get_by_text("Gradient norm was NaN or infinite at 1 steps, first at step 30")).to_be_visible()
    page.goto(f"/runs/{day['queued']}")
    _settled(page)
    expect(page.locator(".no-points").first).to_have_text("no points yet")


def test_charts_zoom_smooth_and_change_axis(open_page: OpenPage, engineer: Actor, day: dict[str, int]) -> None:
    page = open_page(engineer, f"/runs/{day['dpo']}?tab=charts")
    _settled(page)
    area = page.locator(".plot-area .u-over").first
    box = area.bounding_box()
    assert box is not None
    with page.expect_request(lambda request: "from_step=" in request.url) as asked:
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 40, steps=4)
        page.mouse.up()
    assert "to_step=" in asked.value.url
    expect(page.get_by_role("button", name="Whole run")).to_be_visible()
    page.keyboard.press("0")
    expect(page.get_by_role("button", name="Whole run")).to_be_hidden()
    page.keyboard.press("x")
    expect(page.get_by_role("button", name="time", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Log scale").check()
    page.get_by_label("Smoothing").fill("0.5")
    expect(page.locator("chart-controls output")).to_have_text("0.50")


def test_compare_from_the_list_holds_the_choice_in_the_address(
    open_page: OpenPage, engineer: Actor, project: ProjectName, day: dict[str, int]
) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs")
    page.wait_for_selector("html[data-ready]")
    page.get_by_label(f"Compare #{day['dpo']}", exact=True).check()
    page.get_by_label(f"Compare #{day['lora']}", exact=True).check()
    page.keyboard.press("c")
    page.wait_for_url("**/compare?*")
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare two runs")
    expect(page.get_by_role("row", name=re.compile("beta"))).to_contain_text("0.1")
    _settled(page)
    assert page.locator("run-chart").first.evaluate("chart => JSON.parse(chart.dataset.lines).length") == 2
    expect(page.locator(".same article")).to_have_count(2)
    page.keyboard.press("k")
    page.wait_for_url("**prompt=1*")
    expect(page.get_by_text("held-out prompt 2 of 6")).to_be_visible()


@pytest.fixture
def form(open_page: OpenPage, engineer: Actor, project: ProjectName, day: dict[str, int]) -> Callable[[str], Page]:
    """The form of a method's new run."""

    def open_it(query: str) -> Page:
        page = open_page(engineer, f"/projects/{project.id}/runs/new?{query}", expected=("422",))
        page.wait_for_selector("spec-form form")
        return page

    return open_it


def test_a_field_without_meaning_is_not_there(form: Callable[[str], Page]) -> None:
    page = form("method=dpo")
    expect(page.get_by_label("Label smoothing")).to_be_visible()
    page.get_by_label("Loss", exact=False).first.select_option("ipo")
    expect(page.get_by_label("Label smoothing")).to_have_count(0)
    expect(page.get_by_text("Azar et al. 2023")).to_be_visible()
    expect(page.get_by_label("LoRA rank")).to_have_count(0)
    page.get_by_label("Weights").select_option("lora")
    expect(page.get_by_label("LoRA rank")).to_be_visible()


def test_what_is_wrong_is_said_at_the_field_and_stops_the_start(form: Callable[[str], Page]) -> None:
    page = form("method=dpo")
    steps = page.locator("[data-field='optimization.steps']")
    steps.get_by_role("textbox").fill("0")
    expect(steps.locator(".error")).to_have_text("At least 1.")
    expect(page.get_by_role("heading", name="Not ready")).to_be_visible()
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()
    steps.get_by_role("textbox").fill("many")
    expect(steps.locator(".error")).to_contain_text("not a number")
    steps.get_by_role("textbox").fill("40")
    expect(steps.locator(".error")).to_be_hidden()
    expect(page.get_by_role("button", name="Start run")).to_be_enabled()
    page.locator("[data-field='optimization.batch_size'] input").evaluate(
        "input => { input.value = '0'; input.dispatchEvent(new Event('input', {bubbles: true})) }"
    )
    expect(page.locator("details", has_text="Optimization").locator(".push")).to_have_text("1 to mend")


def test_presets_set_and_are_told_apart_from_defaults(form: Callable[[str], Page]) -> None:
    page = form("method=dpo")
    steps = page.locator("[data-field='beta']")
    expect(page.get_by_role("button", name="Tiny model")).to_have_attribute("aria-pressed", "true")
    expect(steps.locator(".bounds")).to_contain_text("0.5 from the preset")
    page.get_by_role("button", name="Defaults").click()
    expect(page.get_by_label("Pull to the reference")).to_have_value("0.1")
    expect(page.get_by_role("button", name="Tiny model")).to_have_attribute("aria-pressed", "false")


def test_clone_export_and_import_carry_the_same_spec(form: Callable[[str], Page], day: dict[str, int]) -> None:
    page = form(f"clone={day['lora']}")
    expect(page.get_by_label("LoRA rank")).to_have_value("8")
    expect(page.get_by_label("Pull to the reference")).to_have_value("0.1")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSON").click()
    path = download.value.path()
    page.get_by_label("Pull to the reference").fill("0.7")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import JSON").click()
    chooser.value.set_files(path)
    expect(page.get_by_label("Pull to the reference")).to_have_value("0.1")


def test_only_fitting_versions_and_models_are_offered(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, day: dict[str, int]
) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs/new?method=sft")
    page.wait_for_selector("spec-form form")
    versions = page.get_by_label("Dataset version").locator("option").all_inner_texts()
    assert versions == ["polite-demos v1 · 1,200 rows"]
    models = page.get_by_label("Base model").locator("option").all_inner_texts()
    assert models[0] == "tiny-llama · base"
    assert not any("reward" in model for model in models)


def test_without_scripts_everything_can_be_read(
    open_page: OpenPage, engineer: Actor, project: ProjectName, day: dict[str, int]
) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs?method=dpo", javascript=False)
    assert page.locator("tbody tr").count() == 5
    page.goto(f"/runs/{day['dpo']}")
    expect(page.get_by_text("It learns.")).to_be_visible()
    page.goto(f"/runs/{day['dpo']}?tab=completions&step=100&against=0")
    expect(page.locator("word-diff .before").first).to_be_visible()
    page.goto(f"/projects/{project.id}/runs/new?method=dpo")
    expect(page.get_by_text("This form needs JavaScript.")).to_be_visible()


def test_a_viewer_may_look_but_not_launch(open_page: OpenPage, project: ProjectName, day: dict[str, int]) -> None:
    page = open_page("viewer", f"/runs/{day['running']}")
    _settled(page)
    expect(page.get_by_role("button", name="Cancel …")).to_have_count(0)
    expect(page.get_by_role("link", name="Clone")).to_have_count(0)
    answer = page.request.get(f"/projects/{project.id}/runs/new")
    assert answer.status == 403


def test_silence_is_a_state(open_page: OpenPage, engineer: Actor, day: dict[str, int]) -> None:
    page = open_page(engineer, f"/runs/{day['silent']}", javascript=False)
    expect(page.locator("[data-live=state]")).to_contain_text("silent for")
    expect(page.locator("[data-live=state]")).not_to_contain_text("running")
    page.goto("/workers")
    expect(page.get_by_text("gpu-1 has been silent for")).to_be_visible()


def test_list_pages_by_keyset(open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName) -> None:
    with unit_of_work(sessions) as session:
        tiny = content.base_model(session, project.id)
        rows = content.version(session, engineer, project.id, "pairs", RowType.PREFERENCE, 20)
        for number in range(60):
            content.queued(session, engineer, project.id, demo.dpo(tiny.id, rows.id, seed=number), f"run {number}")
    page = open_page(engineer, f"/projects/{project.id}/runs", javascript=False)
    assert page.locator("tbody tr").count() == 50
    page.get_by_role("link", name="Next").click()
    assert page.locator("tbody tr").count() == 10
    expect(page.locator("tbody tr").last).to_contain_text("run 0")


def test_an_empty_project_says_what_to_do(open_page: OpenPage, axe: Axe, engineer: Actor, project: ProjectName) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs")
    expect(page.get_by_role("link", name="Start the first run")).to_be_visible()
    axe(page)
    page.get_by_role("link", name="Start the first run").click()
    page.get_by_role("link", name="DPO").click()
    expect(page.get_by_text("There is no model to start from")).to_be_visible()
    page.goto(f"/projects/{project.id}/compare")
    expect(page.get_by_text("No runs yet")).to_be_visible()
    page.goto("/workers")
    expect(page.get_by_text("No worker is there")).to_be_visible()
    axe(page)
