"""The demo project: what a newcomer finds on the first start, made through the same services as everything else.

It brings the tiny base model in ``base/``, rows of every kind, so that each method is one form away, and a labeling
session with completions to compare. It is made once; a project of the same name, renamed or not, is never touched again.
"""

from pathlib import Path

from sqlalchemy.orm import Session

from backend.accounts import service as accounts
from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import Row, RowType
from backend.db import Sessions, unit_of_work
from backend.demo import corpus
from backend.labeling import service as labeling
from backend.labeling.judgments import ItemDraft
from backend.projects import service as projects
from backend.registry import service as registry
from backend.settings import Settings

PROJECT = "Sums and support"
BASE_MODEL = "tiny-base"
DEMONSTRATIONS = "Support and sums, demonstrations"
PAIRS = "Support tone, scripted pairs"
PROMPTS = "Held-out prompts"
VOTES = "Support tone, four votes each"
THUMBS = "Support and sums, thumbs"
SCORES = "Support and sums, graded"
STEPS = "Sums, step by step"
SUMS = "Sums with their answers"
COMPLAINTS = "Complaints to answer"
LABELING_SESSION = "Support tone, round 1"
GUIDELINES = """\
Which of the two answers would you send to the customer?

- A **polite** answer is better than a rude one, whatever it promises.
- For sums, a **right** answer is better than a wrong one, and one that shows its columns is better than a bare number.
- Length does not matter. If both are equally good, or equally bad, say so: a tie is an answer.
- Skip what you cannot judge, and say why.
"""


def ensure(sessions: Sessions, settings: Settings) -> bool:
    """Make the demo project unless this studio ever had it; returns whether it was made."""
    with unit_of_work(sessions) as session:
        maker = accounts.make_system_person(session, "Alignment Studio")
        if maker is not None:
            _make(session, maker)
        return maker is not None


def _make(session: Session, maker: Actor) -> None:
    project = projects.create_project(
        session, maker, PROJECT, "A tiny model that adds two-digit numbers and answers customers. Teach it manners."
    )
    accounts.set_role(session, project.id, maker.person_id, None)
    registry.register_folder(
        session,
        project.id,
        Path(__file__).parent / "base",
        BASE_MODEL,
        note="Trained from scratch by this project on generated text; half of its sums are guesses, most of its replies are rude.",
        created_by=maker.person_id,
    )
    _dataset(session, maker, project.id, DEMONSTRATIONS, RowType.PROMPT_COMPLETION, corpus.demonstrations(3000, seed=1))
    _dataset(session, maker, project.id, PAIRS, RowType.PREFERENCE, corpus.preference_pairs(3000, seed=1))
    _dataset(session, maker, project.id, PROMPTS, RowType.PROMPT_ONLY, corpus.prompts(200, seed=1))
    _dataset(session, maker, project.id, VOTES, RowType.PREFERENCE, corpus.voted_pairs(3000, seed=1))
    _dataset(session, maker, project.id, THUMBS, RowType.UNPAIRED, corpus.thumbs(3000, seed=1))
    _dataset(session, maker, project.id, SCORES, RowType.SCORED, corpus.scored(3000, seed=1))
    _dataset(session, maker, project.id, STEPS, RowType.STEPWISE, corpus.stepwise(4000, seed=1))
    _dataset(session, maker, project.id, SUMS, RowType.PROMPT_ONLY, corpus.sums(2000, seed=1))
    complaints = corpus.prompts(1000, seed=2, side="train", share_sums=0.0)
    _dataset(session, maker, project.id, COMPLAINTS, RowType.PROMPT_ONLY, complaints)
    labeling.create_session(
        session,
        maker,
        project.id,
        name=LABELING_SESSION,
        guidelines=GUIDELINES,
        overlap=2,
        items=[
            ItemDraft.model_validate(
                {
                    "prompt": question.conversation,
                    "completions": question.completions,
                    "models": [BASE_MODEL, BASE_MODEL],
                }
            )
            for question in corpus.candidates(400, seed=1, completions=2)
        ],
    )


def _dataset(session: Session, maker: Actor, project_id: int, name: str, row_type: RowType, rows: list[Row]) -> None:
    dataset = datasets.create_dataset(session, maker, project_id, name, "Generated; see backend/demo/corpus.py.")
    datasets.create_version(session, dataset.id, rows, row_type, origin={"kind": "demo"}, created_by=maker.person_id)
