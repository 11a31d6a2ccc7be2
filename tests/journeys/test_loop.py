"""The whole loop in a browser, on the real worker and the real recipe: judge, freeze, train, watch, find the model, compare.

Nothing is stood in for: a worker of Celery claims the runs, a recipe trains the demo's tiny model on rows as of hh-rlhf.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from backend import embedded
from backend.accounts import credentials
from backend.accounts.actors import Actor, Permission
from backend.db import Sessions, unit_of_work
from backend.demo import seed
from backend.projects.service import ProjectName
from backend.registry import service as registry
from backend.settings import Settings
from backend.supervisor import worker_command
from tests.conftest import MakeActor
from tests.journeys.conftest import OpenPage, Site

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BASE = Path(seed.__file__).parent / "base"
STEPS = 6
ASKED = ("book a table for {n}", "fix my bike", "cook rice for {n}", "write to my landlord")
KIND = "Of course. Tell me a little more, and we will do it step by step."
RUDE = "Why should I care? Do it yourself."


@pytest.fixture
def worker(settings: Settings, site: Site, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The worker as the supervisor starts it, on the test's database."""
    environment = {
        "DATABASE_URL": settings.database_url,
        "REDIS_URL": settings.redis_url,
        "ARTIFACTS_URL": settings.artifacts_url,
        "STUDIO_HOME": str(settings.studio_home),
        "PUBLIC_URL": site.url,
        "WORKER_NAME": "loop",
        "REAP_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *worker_command(1)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **environment},
            preexec_fn=embedded.dies_with_parent(signal.SIGTERM),
        )
    yield process
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _client(site: Site, sessions: Sessions, actor: Actor, *scopes: Permission) -> httpx.Client:
    with unit_of_work(sessions) as session:
        token = credentials.create_token(session, actor, "loop", scopes, 1)[1]
    return httpx.Client(base_url=f"{site.url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=30)


def _sent(answer: httpx.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


def _judge_all(annotator: httpx.Client, labeling: int) -> int:
    """Prefer the kind answer, wherever it is shown; the number of judgments."""
    desk = _sent(annotator.post(f"/labeling-sessions/{labeling}/acknowledge", json={"version": 1}))
    done = 0
    while (held := desk["assignment"]) is not None:
        is_left = held["completions"][0]["content"] == KIND
        answer = {"kind": "comparison", "point": 2 if is_left else 6, "idempotency_key": held["idempotency_key"]}
        desk = _sent(annotator.post(f"/assignments/{held['uuid']}/judgment", json=answer))["desk"]
        done += 1
    return done


def _watch(page: Page, worker: subprocess.Popen[bytes], log: Path) -> list[int]:
    """Until the run has succeeded: how many points the first chart had whenever that number changed."""
    seen: list[int] = []
    step = 0
    deadline = time.monotonic() + 100
    state = page.locator("[data-live=state]")
    while "succeeded" not in (said := state.inner_text()):
        assert "failed" not in said, page.locator(".reading").inner_text()
        assert worker.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{said}\n{log.read_text()[-3000:]}"
        before, step = step, int(page.locator("[data-live=step]").inner_text())
        assert step >= before, "a step ran backward"
        cell = page.locator("run-chart tbody tr td:last-child").first
        points = int((cell.text_content() if cell.count() else "") or 0)
        if points not in seen[-1:]:
            seen.append(points)
        page.wait_for_timeout(50)  # lets the page's own events go on
    return seen


def test_from_judgments_to_compared_models(
    open_page: OpenPage,
    site: Site,
    sessions: Sessions,
    project: ProjectName,
    engineer: Actor,
    make_actor: MakeActor,
    worker: subprocess.Popen[bytes],
    tmp_path: Path,
) -> None:
    with unit_of_work(sessions) as session:
        base = registry.register_folder(session, project.id, BASE, "tiny-base").id
    rest = _client(site, sessions, engineer, Permission.VIEW, Permission.ENGINEER)

    # judge and freeze
    prompts = [f"Can you help me {ASKED[n % 4].format(n=n)}? Day {n}." for n in range(40)]
    items = [{"prompt": prompt, "completions": [KIND, RUDE], "models": ["a", "b"]} for prompt in prompts]
    body = {"name": "Tone", "guidelines": "The kind one.", "overlap": 2, "items": items}
    labeling = _sent(rest.post(f"/projects/{project.id}/labeling-sessions", json=body))["id"]
    for _ in range(2):
        with _client(site, sessions, make_actor("annotator"), Permission.JUDGE) as annotator:
            assert _judge_all(annotator, labeling) == 40
    page = open_page(engineer, f"/labeling/{labeling}")
    page.get_by_role("button", name="Freeze a version with 40 rows").click()
    page.wait_for_url(re.compile(r"/(versions|labeling)/\d+"))
    version = _sent(rest.get(f"/projects/{project.id}/versions"))["items"][0]
    assert version["row_count"] == 40
    page.goto(f"/labeling/{labeling}")
    page.locator(f"a[href='/versions/{version['id']}']").first.click()
    page.get_by_role("link", name="Came from").click()
    expect(page.get_by_role("link", name="Tone", exact=True)).to_have_attribute("href", f"/labeling/{labeling}")

    # train, from the form, and watch
    page.get_by_role("link", name="Train on it").click()
    page.locator(".leads a[href='?method=dpo']").click()
    page.wait_for_selector("spec-form form")
    page.locator("[data-field='dataset'] select").select_option(str(version["id"]))
    page.locator("[data-field='weights'] select").select_option("lora")
    page.evaluate("document.querySelectorAll('details.fold').forEach(fold => fold.open = true)")
    small = {
        "optimization.steps": STEPS,
        "optimization.batch_size": 4,
        "optimization.warmup_steps": 0,
        "evaluation.every_steps": 3,
        "evaluation.max_rows": 8,
        "evaluation.completions": 2,
        "evaluation.max_new_tokens": 8,
        "checkpoints.every_steps": 3,
        "max_length": 128,
        "beta": 0.1,
    }
    for path, value in small.items():
        page.locator(f"[data-field='{path}'] input").fill(str(value))
    page.get_by_label("Name").fill("gentle")
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    page.evaluate("window.sameDocument = true")
    seen = _watch(page, worker, tmp_path / "worker.log")
    assert page.evaluate("window.sameDocument") is True, "the page was loaded again"
    assert seen[0] == 0, f"the page was opened too late to see anything arrive: {seen}"
    expect(page.locator("run-chart tbody tr td:last-child").first).to_have_text(str(STEPS))
    expect(page.locator(f"run-chart[data-shows='0 {STEPS}']").first).to_be_visible()  # and the chart moved with them
    first = int(page.url.rsplit("/", 1)[1])

    # the model it made, and where that came from
    made = _sent(rest.get(f"/runs/{first}"))["models"][0]
    page.goto(f"/models/{made['id']}")
    words = page.locator("#lineage-words")
    for address in (f"/runs/{first}", f"/versions/{version['id']}", f"/labeling/{labeling}", f"/models/{base}"):
        expect(words.locator(f"a[href='{address}']")).to_have_count(1)

    # once more with another β, and compare
    page.goto(f"/projects/{project.id}/runs/new?clone={first}")
    page.locator("[data-field='beta'] input").fill("0.5")
    page.get_by_label("Name").fill("held back")
    page.get_by_role("button", name="Start run").click()
    page.wait_for_url(re.compile(r"/runs/\d+$"))
    _watch(page, worker, tmp_path / "worker.log")
    second = int(page.url.rsplit("/", 1)[1])
    page.goto(f"/projects/{project.id}/compare")
    page.locator(f"#choose-{first}").check()
    page.locator(f"#choose-{second}").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare two runs")
    expect(page.locator("table.compare-runs tbody th code")).to_have_text(["beta"])
    lines = page.locator("run-chart").first.locator("tbody tr")
    expect(lines).to_have_count(2)
    expect(lines.locator("td:last-child")).to_have_text(["3", "3"])  # held-out accuracy at steps 0, 3 and 6
