"""A run's page while it trains: points arrive without a reload, a lost connection is said and caught up, the end is shown."""

import re
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Page, expect

from backend import embedded
from backend.accounts.actors import Actor
from backend.app import create_app
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.demo import specs as demo
from backend.projects.service import ProjectName
from backend.runs import attempts, leases, service
from backend.runs.events import Completion, Completions, Metrics, Note, Started
from backend.runs.leases import Claimed
from tests.journeys import content
from tests.journeys.conftest import OpenPage, Site

pytestmark = pytest.mark.browser


@dataclass
class Trainer:
    """Says what a recipe would say, through the service."""

    sessions: Sessions
    held: Claimed
    line: int = 0

    def say(self, *events: Any) -> None:
        with unit_of_work(self.sessions) as session:
            attempts.record(session, self.held.run_id, self.held.fence, self.held.attempt, self.line, events)
        self.line += len(events)

    def step(self, number: int, **held_out: float) -> None:
        self.say(
            Metrics(step=number, values={"loss": 1 / number, "rewards/accuracies": 0.5 + number / 300, **held_out})
        )

    def end(self, kind: Any, **more: Any) -> None:
        with unit_of_work(self.sessions) as session:
            leases.conclude(session, self.held.run_id, self.held.fence, leases.Ending(kind, **more), pause_seconds=0)


@pytest.fixture
def trainer(site: Site, sessions: Sessions, engineer: Actor, project: ProjectName) -> Trainer:
    """A claimed DPO run that has begun. (*site* first: it gives the sessions their bell.)"""
    with unit_of_work(sessions) as session:
        tiny = content.base_model(session, project.id)
        rows = content.version(session, engineer, project.id, "pairs", RowType.PREFERENCE, 40)
        run = service.submit_run(session, engineer, project.id, demo.dpo(tiny.id, rows.id))
        machine = leases.Machine("cpu-1", "cpu-1.lab", 1, [], 2, 8 * 2**30, 2**30, 2**36, "0.1.0")
        leases.worker_heard(session, machine, fresh=True)
    with unit_of_work(sessions) as session:
        held = leases.claim(session, "cpu-1", "boot:1", 60)
        assert held is not None
        assert held.run_id == run.id
        attempts.begin(session, held.run_id, held.fence, "folder", 0)
    made = Trainer(sessions, held)
    made.say(
        Started(
            total_steps=100, train_rows=36, held_out_rows=4, trainable_parameters=1, total_parameters=1, device="cpu"
        )
    )
    made.say(Metrics(step=0, values={"eval_rewards/accuracies": 0.5}))
    return made


def _points(page: Page) -> int:
    """Points of the first line of the first chart, as its table says them."""
    cell = page.locator("run-chart table").first.locator("tbody tr").first.locator("td").last
    return int(cell.text_content() or "0")


def test_points_and_words_arrive_without_a_reload(open_page: OpenPage, engineer: Actor, trainer: Trainer) -> None:
    page = open_page(engineer, f"/runs/{trainer.held.run_id}")
    page.evaluate("window.sameDocument = true")
    expect(page.locator("[data-live=state]")).to_contain_text("running")
    for number in range(1, 6):
        trainer.step(number)
        page.wait_for_function(
            "n => document.querySelector('run-chart tbody tr td:last-child')?.textContent === String(n)", arg=number
        )
        expect(page.locator("[data-live=step]")).to_have_text(str(number))
    tabs = page.locator("nav.tabs")
    expect(tabs.get_by_role("link", name="Charts")).to_have_text("Charts 2")  # loss and accuracy, held out beside it
    trainer.step(20, **{"eval_rewards/accuracies": 0.8})
    expect(page.get_by_text("It learns.")).to_be_visible()
    trainer.say(
        Completions(step=20, samples=[Completion(prompt="2 + 2?", completion="It is 4.", tokens=5, ended=True)])
    )
    expect(tabs.get_by_role("link", name="Completions")).to_have_text("Completions 1")
    expect(page.get_by_text("It is 4.")).to_be_visible()
    runs = page.locator("#menu").get_by_role("link", name="Runs")
    expect(runs).to_contain_text("1 running")
    trainer.end("failed", reason="The loss was not a number.", remedy="Try a smaller learning rate.")
    expect(page.get_by_text("The run failed at step 20")).to_be_visible()
    expect(runs).not_to_contain_text("running")
    expect(page.get_by_role("button", name="Cancel …")).to_have_count(0)
    assert page.evaluate("window.sameDocument") is True


def test_log_lines_arrive(open_page: OpenPage, engineer: Actor, trainer: Trainer) -> None:
    page = open_page(engineer, f"/runs/{trainer.held.run_id}?tab=logs")
    logs = page.locator("nav.tabs").get_by_role("link", name="Logs")
    before = int((logs.text_content() or "").removeprefix("Logs "))
    trainer.say(Note(level="warning", text="Two rows were cut."))
    expect(logs).to_have_text(f"Logs {before + 1}")
    expect(page.locator("#log-lines").get_by_text("Two rows were cut.")).to_have_count(1)
    page.reload()
    expect(page.locator("#log-lines").get_by_text("Two rows were cut.")).to_have_count(1)
    expect(logs).to_have_text(f"Logs {before + 1}")


def test_charts_of_a_new_metric_arrive(open_page: OpenPage, engineer: Actor, trainer: Trainer) -> None:
    page = open_page(engineer, f"/runs/{trainer.held.run_id}?tab=charts")
    expect(page.locator("run-chart")).to_have_count(1)  # what was measured before the first step
    trainer.step(1)
    expect(page.locator("run-chart")).to_have_count(2)
    page.wait_for_function("() => document.querySelector('run-chart tbody tr td:last-child')?.textContent === '1'")


def test_a_lost_connection_is_said_and_caught_up(
    open_page: OpenPage, engineer: Actor, trainer: Trainer, sessions: Sessions, site: Site
) -> None:
    page = open_page(engineer, f"/runs/{trainer.held.run_id}", expected=("Failed to load resource", "ERR_"))
    trainer.step(1)
    page.wait_for_function("() => document.querySelector('run-chart tbody tr td:last-child')?.textContent === '1'")
    site.stop()
    expect(page.get_by_text("Connection lost, catching up.")).to_be_visible()
    for number in range(2, 40):
        trainer.step(number)
    port = int(site.url.rsplit(":", 1)[1])
    again = uvicorn.Server(
        uvicorn.Config(create_app(site.settings, sessions), host="127.0.0.1", port=port, log_level="warning")
    )
    thread = threading.Thread(target=again.run, daemon=True)
    thread.start()
    embedded.wait_until(lambda: again.started, "the web")
    page.wait_for_function("() => document.querySelector('run-chart tbody tr td:last-child')?.textContent === '39'")
    expect(page.get_by_text("Connection lost, catching up.")).to_have_count(0)
    steps = page.locator("run-chart table").first.locator("tbody tr").first.locator("td").nth(1)
    expect(steps).to_have_text("39")
    again.should_exit = True
    again.force_exit = True
    thread.join(10)


def test_cancel_asks_once_and_is_shown(open_page: OpenPage, engineer: Actor, trainer: Trainer) -> None:
    page = open_page(engineer, f"/runs/{trainer.held.run_id}")
    page.wait_for_selector("html[data-ready]")
    elapsed = page.locator("[data-since]")
    at_first = elapsed.text_content() or ""
    expect(elapsed).to_have_text(re.compile(r"^\d+ s$"))
    expect(elapsed, "it ticks while nothing happens").not_to_have_text(at_first)
    expect(page.get_by_role("columnheader", name="Step 0")).to_have_count(1)
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.get_by_role("button", name="Cancel …").click()
    expect(page.locator("[data-live=state]")).to_contain_text("running")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel …").click()
    expect(page.locator("[data-live=state]")).to_contain_text("cancelling")
    trainer.end("cancelled")
    expect(page.locator("[data-live=state]")).to_contain_text("cancelled")


def test_the_form_starts_a_run_once(
    open_page: OpenPage, engineer: Actor, project: ProjectName, trainer: Trainer
) -> None:
    page = open_page(engineer, f"/projects/{project.id}/runs/new?clone={trainer.held.run_id}", expected=("422",))
    page.wait_for_selector("spec-form form")
    page.get_by_label("Pull to the reference").fill("0.25")
    page.get_by_label("Name").fill("β a quarter")
    page.locator("summary", has_text="Optimization").click()
    page.locator("[data-field='optimization.warmup_steps'] input").fill("5000")
    page.get_by_role("button", name="Start run").click()
    expect(page.locator("[data-field='optimization.warmup_steps'] .error")).to_contain_text("longer than the run")
    page.locator("[data-field='optimization.warmup_steps'] input").fill("5")
    page.get_by_role("button", name="Start run").dblclick()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    expect(page.get_by_role("heading", level=1)).to_contain_text("β a quarter")
    page.goto(page.url + "?tab=spec")
    expect(page.get_by_role("row", name=re.compile("^beta"))).to_contain_text("0.25")
    page.goto(f"/projects/{project.id}/runs")
    expect(page.locator("tbody tr")).to_have_count(2)
