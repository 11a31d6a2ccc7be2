"""Every method through its form in a real browser: it renders, its preset starts a run, and what is refused is said at the field."""

import json
import re
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, expect

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.projects.service import ProjectName
from backend.runs import specs
from backend.runs.tables import Run
from tests.journeys import content
from tests.journeys.conftest import Axe, OpenPage

pytestmark = pytest.mark.browser

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
_ANSWER = {"answer": "3", "tests": json.dumps([]), "constraints": json.dumps([])}
_ROWS: dict[RowType, dict[str, Any]] = {
    RowType.PROMPT_COMPLETION: {"prompt": "1 + {n}?", "completion": "It is {n}."},
    RowType.PREFERENCE: {"prompt": "1 + {n}?", "chosen": "Gladly: {n}.", "rejected": "{n}"},
    RowType.UNPAIRED: {"prompt": "1 + {n}?", "completion": "{n}", "label": True},
    RowType.PROMPT_ONLY: {"prompt": "1 + {n}?", **_ANSWER},
    RowType.STEPWISE: {"prompt": "1 + {n}?", "completions": ["1", "{n}"], "labels": [True, False]},
    RowType.SCORED: {"prompt": "1 + {n}?", "completion": "{n}", "scores": {"helpful": 4.0, "correct": 2.0}},
}
"""The row type of each method's rows, the type with the answers for those that sample."""


def _type(method: str) -> RowType:
    if method in ("ppo", "grpo"):
        return RowType.PROMPT_ONLY
    return RowType.UNPAIRED if method == "kto" else next(kind for kind in _ROWS if kind in specs.NEEDS[method])


def _filled(row: dict[str, Any], n: int) -> dict[str, Any]:
    return {
        key: value.format(n=n) if key != "tests" and isinstance(value, str) else value for key, value in row.items()
    }


@pytest.fixture
def stocked(sessions: Sessions, engineer: Actor, project: ProjectName) -> dict[str, int]:
    """A model to start from, rows of every type, a reward model of each kind; ids by name."""
    with unit_of_work(sessions) as session:
        ids = {"base": content.base_model(session, project.id).id}
        ids["reward"] = content.base_model(session, project.id, "tone-rm", kind="reward").id
        ids["ensemble"] = content.base_model(session, project.id, "tone-rm-2", kind="reward").id
        steps = {"kind": "reward", "architecture": "LlamaForTokenClassification"}
        ids["steps"] = content.base_model(session, project.id, "step-judge", **steps).id
        for row_type, row in _ROWS.items():
            made = datasets.create_dataset(session, engineer, project.id, row_type.value).id
            rows = [_filled(row, n) for n in range(40)]
            version = datasets.create_version(
                session, made, rows, row_type, origin={"kind": "import"}, created_by=engineer.person_id
            )
            ids[row_type.value] = version.id
        content.worker(session, "cpu-1")
    return ids


def _form(page: Page, project: ProjectName, method: str, version: int) -> None:
    page.goto(f"/projects/{project.id}/runs/new?method={method}")
    page.wait_for_selector("spec-form form")
    page.locator("#spec-dataset").select_option(str(version))


def test_the_default_preset_of_every_method_starts_a_run(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account")
    for method in specs.METHODS:
        _form(page, project, method, stocked[_type(method).value])
        expect(page.locator(".equation")).to_be_visible()
        expect(page.get_by_role("heading", name="Ready", exact=True)).to_be_visible()
        if method == "process_reward":
            page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
            expect(page.locator("[data-field=separator] .bounds")).to_have_text(r"default \n")
            page.locator("#spec-separator").fill(r"\n\n")
        with page.expect_response(lambda answer: answer.request.method == "POST") as sent:
            page.get_by_role("button", name="Start run").click()
        assert sent.value.status == 201, method
        page.wait_for_url(re.compile(r"/runs/\d+$"))
        expect(page.get_by_role("heading", level=1)).to_contain_text(" on tiny-llama")
        with sessions() as session:
            run = session.get_one(Run, int(page.url.rpartition("/")[2]))
            assert run.method == method
            assert run.spec.get("separator", "\n\n") == "\n\n", "what was typed, not how it is shown"
            specs.SPEC.validate_python(run.spec)


@pytest.mark.parametrize("width", [1440, 390])
def test_every_form_is_readable_by_all_and_fits(
    open_page: OpenPage, axe: Axe, engineer: Actor, project: ProjectName, stocked: dict[str, int], width: int
) -> None:
    page = open_page(engineer, "/account", width=width)
    for method in specs.METHODS:
        _form(page, project, method, stocked[_type(method).value])
        page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true })")
        wider = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"the form of {method} is {wider} px wider than the screen"
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            axe(page)


def test_every_variant_of_grpo_with_every_reward_is_accepted(
    open_page: OpenPage, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account")
    _form(page, project, "grpo", stocked["prompt_only"])
    for group in ("Variant", "Rewards"):
        for name in page.locator(f"[data-group={group}][data-preset]").all_inner_texts():
            button = page.locator(f"[data-group={group}][data-preset={json.dumps(name)}]")
            button.click()
            expect(button).to_have_attribute("aria-pressed", "true")
            expect(page.get_by_role("heading", name="Ready", exact=True)).to_be_visible()


def test_rewards_are_composed_without_a_mouse(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account")
    _form(page, project, "grpo", stocked["prompt_only"])
    cards = page.locator(".card h3")
    expect(cards).to_have_text(["Numeric answer"])
    for kind in ("Length", "Reward model", "Process reward model", "Tags"):
        page.locator("#spec-rewards-components").focus()
        page.keyboard.press("Enter")
        page.get_by_role("button", name=re.compile(f"^{kind} ")).focus()
        page.keyboard.press("Enter")
        expect(page.locator(".card").last).to_be_focused()
    page.keyboard.press("Alt+ArrowUp")
    expect(cards).to_have_text(["Numeric answer", "Length", "Reward model", "Tags", "Process reward model"])
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    page.get_by_role("button", name="Move up: Tags").press("Enter")
    expect(cards.first).to_have_text("Tags")
    page.get_by_label("tone-rm ·").focus()
    page.keyboard.press("Space")
    gated = page.locator("[data-card='rewards.components.1']")
    gated.locator("summary").press("Enter")
    page.locator("#spec-rewards-components-0-name").fill("form")
    gated.get_by_label("Only if").select_option("form")
    page.locator("#spec-rewards-components-0-name").fill("thinking")  # the gate follows its component
    page.get_by_role("button", name="Remove Process reward model").press("Enter")
    weight = page.locator("#spec-rewards-components-2-weight")
    weight.fill("0.25")
    weight.press("Enter")
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    with sessions() as session:
        run = session.get_one(Run, int(page.url.rpartition("/")[2]))
    spec: Any = specs.SPEC.validate_python(run.spec)
    assert [name for name, _ in spec.rewards.named()] == ["thinking", "correct", "length", "reward_model"]
    assert spec.rewards.components[1].only_if == "thinking"
    assert spec.rewards.components[2].weight == 0.25
    assert set(spec.rewards.components[3].models) == {stocked["reward"], stocked["ensemble"]}


def test_what_cannot_work_is_said_at_its_field(
    open_page: OpenPage, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account", expected=("422",))
    _form(page, project, "grpo", stocked["prompt_completion"])
    column = page.locator("[data-field='rewards.components.0.column']")
    expect(column.locator(".error")).to_contain_text("The rows have no column “answer”.")
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()
    page.locator("#spec-dataset").select_option(str(stocked["prompt_only"]))
    expect(column.locator(".error")).to_be_hidden()
    # what only the server knows: no worker has a GPU, and completions leave no room for a prompt
    page.locator("#spec-weights").select_option("qlora")
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("#spec-weights-error")).to_contain_text("no worker has one")
    expect(page.locator("#spec-weights")).to_be_focused()
    page.locator("#spec-weights").select_option("full")
    page.locator("#spec-sampling-max_new_tokens").fill("128")
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("#spec-sampling-max_new_tokens-error")).to_contain_text("leave no room")
    page.locator("#spec-sampling-max_new_tokens").fill("32")
    # what the spec refuses as a whole
    page.locator("#spec-group_size").fill("7")
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("#spec-group_size-error")).to_contain_text("not whole groups of 7")
    # a field inside a component that the server refuses
    page.locator("#spec-group_size").fill("8")
    page.get_by_role("button", name="Reward model", exact=True).click()
    page.get_by_label("tone-rm-2").uncheck()
    expect(page.locator("[data-field='rewards.components.0.models'] .error")).to_contain_text("At least one")


def test_the_rows_offered_have_what_the_rewards_read(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    with unit_of_work(sessions) as session:
        made = datasets.create_dataset(session, engineer, project.id, "newer, without answers").id
        rows = [{"prompt": f"{n}?"} for n in range(8)]
        plain = datasets.create_version(
            session, made, rows, RowType.PROMPT_ONLY, origin={"kind": "import"}, created_by=engineer.person_id
        ).id
    page = open_page(engineer, f"/projects/{project.id}/runs/new?method=grpo")
    expect(page.get_by_role("heading", name="Ready", exact=True)).to_be_visible()
    rows_offered = page.locator("#spec-dataset")
    expect(rows_offered).to_have_value(str(stocked["prompt_only"]))
    page.get_by_role("button", name="Reward model", exact=True).click()
    expect(rows_offered).to_have_value(str(plain))
    page.get_by_role("button", name="Instructions", exact=True).click()
    expect(rows_offered).to_have_value(str(stocked["prompt_only"]))
    rows_offered.select_option(str(stocked["preference"]))  # a person's choice stays, whatever it lacks
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(rows_offered).to_have_value(str(stocked["preference"]))


def test_attributes_are_those_of_the_rows(
    open_page: OpenPage, sessions: Sessions, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account")
    _form(page, project, "attribute_reward", stocked["scored"])
    page.get_by_role("button", name="Remove correct").click()
    page.get_by_label("Weight of helpful").fill("-0.5")
    page.get_by_role("button", name="Add an attribute").click()
    expect(page.get_by_label("Attribute 2")).to_have_value("correct")
    page.get_by_label("Weight of correct").fill("2")
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    with sessions() as session:
        run = session.get_one(Run, int(page.url.rpartition("/")[2]))
    assert run.spec["attributes"] == {"helpful": -0.5, "correct": 2}


def test_several_seeds_start_at_once(
    open_page: OpenPage, engineer: Actor, project: ProjectName, stocked: dict[str, int]
) -> None:
    page = open_page(engineer, "/account")
    _form(page, project, "reward", stocked["preference"])
    seeds = page.get_by_label("Runs with other seeds")
    seeds.fill("9")
    expect(page.get_by_role("button", name="Start run")).to_be_disabled()
    seeds.fill("3")
    page.get_by_role("button", name="Start 3 runs").click()
    page.wait_for_url("**/compare?runs=*")
    expect(page.get_by_role("row", name=re.compile("^seed"))).to_contain_text("2")


def test_runs_show_what_decides_and_every_score_of_a_completion(
    open_page: OpenPage, axe: Axe, sessions: Sessions, engineer: Actor, project: ProjectName
) -> None:
    with unit_of_work(sessions) as session:
        ids = content.sampled_runs(session, engineer, project.id)
    page = open_page(engineer, f"/runs/{ids['grpo0']}")
    expect(page.get_by_role("heading", name="Rewards by component")).to_be_visible()
    expect(page.get_by_text("It learns.")).to_be_visible()
    unscored = page.locator(".completions tbody tr", has_text="parcel").locator(".score").first
    expect(unscored).to_have_text("not scored")
    axe(page)
    page.goto(f"/runs/{ids['process']}")
    reliability = page.get_by_role("img", name=re.compile("^Reliability: 5\\d % sure"))
    expect(reliability).to_be_visible()
    expect(page.locator(".completions .scores").first).to_contain_text("step 1")
    axe(page)
    page.goto(f"/projects/{project.id}/compare?runs={ids['grpo0']},{ids['heavier']}")
    expect(page.get_by_role("row", name=re.compile("rewards › length › weight"))).to_contain_text("0.5")
    page.goto(f"/projects/{project.id}/compare?runs={ids['grpo0']},{ids['grpo1']},{ids['grpo2']}")
    expect(page.get_by_role("columnheader", name="Mean ± spread")).to_be_visible()
    axe(page)
    page.goto(f"/projects/{project.id}/runs")
    page.get_by_label("Method").select_option("Process reward")
    page.wait_for_url("**method=process_reward*")
    expect(page.locator("tbody tr")).to_have_count(1)
