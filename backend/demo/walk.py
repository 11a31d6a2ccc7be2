"""``studio demo``: the whole loop by command, through the REST API only, saying what it did with addresses and figures.

Judgments of two scripted annotators → dataset version → SFT → reward model → DPO, on the tiny model. Only one thing is done
beside the API, because it can be done only on the studio's own machine: letting the three demo people in.
"""

import random
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from backend.accounts import credentials
from backend.accounts import service as accounts
from backend.accounts.actors import Permission, Role
from backend.client import FINISHED, Studio
from backend.demo import corpus, seed, specs
from backend.projects import service as projects

ITEMS = 400
CARELESS = 0.05
"""Share of judgments that a scripted annotator gives without looking."""

Json = dict[str, Any]


class Guests(NamedTuple):
    """API tokens, good for a day, of the people of the demo, and the project they work in."""

    project_id: int
    engineer: str
    annotators: list[str]


class Result(NamedTuple):
    """What one run did to its held-out figure."""

    run: Json
    figure: str
    before: float
    after: float
    seconds: float


def let_in(session: Session) -> Guests | None:
    """Let an engineer and two annotators into the demo project; they are made at the first call, and nobody can sign in as them.

    ``None`` if the demo project is not there.
    """
    project_id = projects.find_project(session, seed.PROJECT)
    if project_id is None:
        return None

    def token(name: str, role: Role, scopes: list[Permission]) -> str:
        email = f"{name.lower()}@demo.localhost"
        person = accounts.find_person(session, email) or accounts.add_person(session, name, email)
        accounts.set_role(session, project_id, person.id, role)
        return credentials.create_token(session, accounts.actor_of(session, person.id), "studio demo", scopes, 1)[1]

    engineer = token("Heron", Role.ENGINEER, [Permission.VIEW, Permission.ENGINEER])
    return Guests(project_id, engineer, [token(name, Role.ANNOTATOR, [Permission.JUDGE]) for name in ("Wren", "Finch")])


def main(url: str, guests: Guests) -> int:
    """Walk the loop on the studio at *url*; returns the exit code: 0 if every held-out figure improved."""
    with Studio(url, guests.engineer) as studio:
        return _walk(studio, guests)


def _walk(studio: Studio, guests: Guests) -> int:
    project_id = guests.project_id
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    base = next(model for model in studio.models(project_id) if model["name"] == seed.BASE_MODEL)
    demonstrations = _newest_version(studio, project_id, seed.DEMONSTRATIONS)

    _say("1  Ask people", f"{ITEMS} pairs of completions, two scripted annotators, each pair judged by both")
    questions = corpus.candidates(ITEMS, seed=int(time.time()), completions=2)
    session = studio.create_labeling_session(
        project_id,
        f"Support tone, demo of {stamp}",
        guidelines=seed.GUIDELINES,
        overlap=2,
        items=[
            {"prompt": question.conversation, "completions": question.completions, "models": [seed.BASE_MODEL] * 2}
            for question in questions
        ],
    )
    judged = sum(judge_all(studio.url, token, session["id"], number) for number, token in enumerate(guests.annotators))
    _say("", f"{judged} judgments   {studio.url}/labeling/{session['id']}")

    frozen = studio.freeze(session["id"], f"Support tone, demo of {stamp}", {"rule": "majority", "ties": "drop"})
    version = studio.version(frozen["version_id"])
    counts = frozen["counts"]
    _say(
        "2  Freeze",
        f"{version['row_count']} preference rows from {counts['items']} pairs ({counts['ties']} ties, "
        f"{counts['no_majority']} without a majority left out)   {studio.url}/versions/{version['id']}",
    )

    results: list[Result] = []
    plans: list[tuple[str, str, Json, str]] = [
        ("3  SFT", "imitate good answers", specs.sft(base["id"], demonstrations).model_dump(mode="json"), "eval_loss"),
        ("4  Reward model", "learn what the annotators prefer", specs.reward(base["id"], version["id"]).model_dump(mode="json"), "eval_accuracy"),
        ("5  DPO", "prefer it", specs.dpo(base["id"], version["id"]).model_dump(mode="json"), "eval_rewards/accuracies"),
    ]  # fmt: skip
    for title, purpose, spec, figure in plans:
        run = studio.submit_run(project_id, spec, name=f"{title[3:]}, demo of {stamp}")
        _say(title, f"{purpose}   {studio.url}/runs/{run['id']}")
        state = _watch(studio, run["id"])
        if state["state"] != "succeeded":
            print(f"   the run {state['state']}: {state.get('exit_reason')}")
            return 1
        series = studio.metrics(run["id"], [figure], points=1000)[figure]
        finished = studio.run(run["id"])
        results.append(Result(finished, figure, series["values"][0], series["values"][-1], finished["seconds"] or 0))
        _say("", f"held-out {figure}: {results[-1].before:.3f} → {results[-1].after:.3f}")
        for line in _manners(studio, run["id"]):
            _say("", line)
    print()
    print(f"{'run':<32}{'held-out figure':<28}{'before':>8}{'after':>8}{'seconds':>9}")
    for result in results:
        name = str(result.run["name"]).split(",")[0]
        print(f"{name:<32}{result.figure:<28}{result.before:>8.3f}{result.after:>8.3f}{result.seconds:>9.0f}")
    print(f"\nCompare and look around: {studio.url}/projects/{project_id}/runs")
    improved = [(r.after < r.before) if r.figure.endswith("loss") else (r.after > r.before) for r in results]
    return 0 if all(improved) else 1


def _newest_version(studio: Studio, project_id: int, name: str) -> int:
    dataset = next(dataset for dataset in studio.datasets(project_id) if dataset["name"] == name)
    return int(max(studio.versions(dataset["id"]), key=lambda version: version["number"])["id"])


def judge_all(url: str, token: str, labeling_session_id: int, number: int) -> int:
    """One scripted annotator judges until nothing is left for them; returns how many judgments that were.

    They see what an annotator sees: prompt and two completions, sides as drawn; they prefer what
    :func:`corpus.candidate_quality` prefers, and are careless now and then.
    """
    rng = random.Random(f"{labeling_session_id} {number}")
    judged = 0
    with Studio(url, token) as studio:
        desk = studio.next_assignment(labeling_session_id)
        if not desk["guidelines"]["acknowledged"]:
            desk = studio.acknowledge_guidelines(labeling_session_id, desk["guidelines"]["version"])
        while (assignment := desk["assignment"]) is not None:
            prompt = _words(assignment["prompt"])
            left, right = (
                corpus.candidate_quality(prompt, _words(completion["content"]))
                for completion in assignment["completions"]
            )
            point = 4 + max(-3, min(3, round(right - left)))
            if rng.random() < CARELESS:
                point = rng.randint(1, 7)
            answer: Json = {"kind": "comparison", "point": point, "idempotency_key": assignment["idempotency_key"]}
            if point == 4:
                answer["tie_kind"] = "both_good" if left + right > 3 else "both_bad"
            desk = studio.submit_judgment(assignment["uuid"], answer)["desk"]
            judged += 1
    return judged


def _words(content: Any) -> str:
    return content if isinstance(content, str) else str(content[-1]["content"])


def _watch(studio: Studio, run_id: int) -> Json:
    state: Json = studio.run(run_id)
    shown = time.monotonic()
    loss: Any = None
    for event in studio.follow(run_id):
        if event.name == "metrics":
            loss = event.data["values"].get("loss", loss)
        elif event.name == "run":
            state = event.data
            if time.monotonic() - shown > 5 and state["state"] not in FINISHED:
                shown = time.monotonic()
                said = f", loss {loss:.3f}" if isinstance(loss, float) else ""
                _say("", f"{state['state']}, step {state.get('step') or 0} of {state.get('total') or '?'}{said}")
    return state


def _manners(studio: Studio, run_id: int) -> Iterator[str]:
    """How polite, and how right, the held-out completions were before the first and after the last step."""
    steps: list[int] = studio.get(f"/runs/{run_id}/completions", limit=1)["steps"]
    if len(steps) < 2:
        return
    first, last = (list(studio.items(f"/runs/{run_id}/completions", step=step)) for step in (steps[0], steps[-1]))
    for what, sums in (("replies polite", False), ("sums right", True)):
        before, after = (_good(samples, sums) for samples in (first, last))
        if before and after:
            yield f"held-out {what}: {sum(before)} of {len(before)} → {sum(after)} of {len(after)}"


def _good(samples: list[Json], sums: bool) -> list[bool]:
    return [
        corpus.answer_is_right(one["prompt"], one["completion"]) if sums else corpus.is_polite(one["completion"])
        for one in samples
        if corpus.is_sum(one["prompt"]) == sums and not one["rewards"]
    ]


def _say(head: str, text: str) -> None:
    print(f"{head:<18}{text}" if head else f"{'':<18}{text}", flush=True)
