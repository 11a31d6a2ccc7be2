"""Attempts: what the holder of a run reads and writes while it holds it, from the materials to the last event.

Every write goes through :func:`leases.held`, so that nobody writes a run whose lease went to somebody else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from backend.artifacts import FileEntry, Manifest
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.datasets.tables import DatasetVersion
from backend.live import ring
from backend.registry import service as registry
from backend.registry.tables import Model
from backend.runs import events as said
from backend.runs import history, leases, metrics
from backend.runs.specs import AnySpec, stored
from backend.runs.tables import NOW, Run, RunAttempt, RunCheckpoint, RunCompletion


class ModelFiles(NamedTuple):
    """A model in the artifact store; an adapter with the weights that it changes."""

    model: Manifest
    adapter_base: Manifest | None

    def size(self) -> int:
        """In bytes."""
        return sum(entry.size for entry in [*self.model, *(self.adapter_base or [])])


class Materials(NamedTuple):
    """What an attempt needs on its machine."""

    spec: AnySpec
    name: str
    base_model: ModelFiles
    other_models: dict[int, ModelFiles]
    rows: Path
    row_type: RowType


def _files_of(session: Session, model_id: int) -> ModelFiles:
    chain = registry.chain_of(session, session.get_one(Model, model_id))
    return ModelFiles(registry.manifest_of(chain[-1]), registry.manifest_of(chain[-2]) if len(chain) > 1 else None)


def materials(session: Session, run_id: int) -> Materials:
    """What the run's spec names, ready to be laid into the attempt's folder."""
    run = session.get_one(Run, run_id)
    version = session.get_one(DatasetVersion, run.dataset_version_id)
    spec = stored(run.spec)
    return Materials(
        spec,
        run.name,
        _files_of(session, run.base_model_id),
        {model_id: _files_of(session, model_id) for model_id in spec.other_models()},
        datasets.rows_path(session, version),
        RowType(version.row_type),
    )


class Saved(NamedTuple):
    """A checkpoint in the artifact store."""

    id: int
    step: int
    manifest: Manifest


def _checkpoints(session: Session, run_id: int) -> list[RunCheckpoint]:
    """Those that are whole, newest first."""
    query = select(RunCheckpoint).where(RunCheckpoint.run_id == run_id, RunCheckpoint.damaged_at.is_(None))
    return list(session.scalars(query.order_by(RunCheckpoint.step.desc(), RunCheckpoint.attempt.desc())))


def saved_states(session: Session, run_id: int) -> list[Saved]:
    """Checkpoints to go on from, newest first."""
    return [
        Saved(row.id, row.step, [FileEntry(*entry) for entry in row.manifest]) for row in _checkpoints(session, run_id)
    ]


def artifacts_needed(session: Session) -> set[str]:
    """Hashes of the files that checkpoints are made of."""
    return {sha256 for manifest in session.scalars(select(RunCheckpoint.manifest)) for _, _, sha256 in manifest}


def _forget_older(session: Session, run: Run) -> None:
    """Only as many saved states as the spec keeps; their files go with the next sweep."""
    session.flush()
    keep = stored(run.spec).checkpoints.keep
    for old in _checkpoints(session, run.id)[keep:]:
        session.delete(old)


def checkpoint_is_damaged(session: Session, run_id: int, fence: int, saved: Saved, why: str) -> None:
    """Never go on from *saved* again, and say so."""
    run = leases.held(session, run_id, fence)
    session.execute(update(RunCheckpoint).where(RunCheckpoint.id == saved.id).values(damaged_at=NOW))
    words = f"The checkpoint of step {saved.step} is damaged ({why}); the one before it is taken."
    history.say(session, run, [("log", {"level": "warning", "text": words})])
    history.announce(session, run)


def begin(session: Session, run_id: int, fence: int, folder: str, resume_step: int) -> None:
    """The attempt goes on after *resume_step* in *folder*; points beyond that step are taken back."""
    run = leases.held(session, run_id, fence)
    session.add(
        RunAttempt(
            run_id=run_id,
            attempt=run.attempt,
            fence=fence,
            worker=run.lease_owner,
            folder=folder,
            resume_step=resume_step,
        )
    )
    metrics.rewind(session, run_id, resume_step if run.attempt > 1 and resume_step else -1)
    session.execute(
        text("delete from run_completion where run_id = :run and step > :step"),
        {"run": run_id, "step": resume_step if resume_step else -1},
    )
    run.progress_step = resume_step
    if run.attempt > 1:
        words = (
            f"Attempt {run.attempt} goes on after step {resume_step}."
            if resume_step
            else f"Attempt {run.attempt} begins anew."
        )
        history.say(session, run, [("log", {"level": "info", "text": words})])
    history.announce(session, run)


def lines_read(session: Session, run_id: int, attempt: int) -> tuple[int, int]:
    """Lines of the attempt's event file and bytes of its output that are recorded."""
    row = session.get_one(RunAttempt, (run_id, attempt), populate_existing=True)
    return row.lines_read, row.output_read


@dataclass(frozen=True)
class Output:
    """A piece of what the process wrote to its output, and where in the file it ends."""

    text: str
    end: int


def record(
    session: Session,
    run_id: int,
    fence: int,
    attempt: int,
    first_line: int,
    lines: Sequence[Any],
    *,
    manifests: Mapping[int, Manifest] | None = None,
    output: Output | None = None,
) -> bool:
    """Write what *lines* (events, the first of them line number *first_line* of the file, counted from 0) say.

    The position in the file moves in the same transaction: what was recorded already is skipped, so a replay changes
    nothing. *manifests*: line number → files of the checkpoint that it names. Answers whether somebody asked to cancel
    the run, as :func:`leases.heartbeat` does. Raises :class:`leases.LeaseLost`.
    """
    run = leases.held(session, run_id, fence)
    place = session.get_one(RunAttempt, (run_id, attempt), populate_existing=True)
    if first_line > place.lines_read:
        raise ValueError(f"lines {place.lines_read} to {first_line} of run {run_id} are missing")
    lines, first_line = lines[place.lines_read - first_line :], place.lines_read
    told: list[tuple[Any, ...]] = []
    points: list[metrics.Point] = []
    written: dict[tuple[int, int], dict[str, Any]] = {}
    step, state = run.progress_step, run.state
    for number, line in enumerate(lines, first_line):
        data = line.model_dump(mode="json", exclude={"kind", "at"})
        match line:
            case said.Started():
                told.append(("started", data, line.at))
                run.total_steps = line.total_steps
                place.working_at = NOW
                if state == "starting":
                    state = "running"
            case said.Metrics():
                told.append(("metrics", data, line.at))
                points += [
                    metrics.Point(history.plain(key), line.step, value, line.at) for key, value in line.values.items()
                ]
                step = max(step, line.step)
            case said.Completions():
                told.append(("completions", {"step": line.step, "count": len(line.samples)}, line.at))
                for index, sample in enumerate(line.samples):
                    written[line.step, index] = {
                        "run_id": run_id, "step": line.step, "index": index, "attempt": attempt, **history.plain(sample.model_dump(mode="json"))
                    }  # fmt: skip
            case said.Checkpoint():
                manifest = (manifests or {}).get(number)
                if manifest is None:
                    raise ValueError(f"line {number} of run {run_id} names a checkpoint without its files")
                size = sum(entry.size for entry in manifest)
                session.add(
                    RunCheckpoint(
                        run_id=run_id, step=line.step, attempt=attempt, fence=fence, manifest=[list(e) for e in manifest], size_bytes=size
                    )
                )  # fmt: skip
                told.append(("checkpoint", {"step": line.step, "size_bytes": size}, line.at))
                step = max(step, line.step)
            case said.Note():
                told.append(("log", data, line.at))
            case said.Failed():
                words = line.reason + (f"\n{line.trace}" if line.trace else "")
                told.append(("log", {"level": "error", "text": words}, line.at))
            case said.Finished():
                words = "All steps are taken." if line.outcome == "completed" else f"Stopped after step {line.step}."
                told.append(("log", {"level": "info", "text": words}, line.at))
                step = max(step, line.step)
    if output is not None and output.end > place.output_read:
        told += [
            ("log", {"level": "output", "text": text_line})
            for text_line in output.text.splitlines()
            if text_line.strip()
        ]
        place.output_read = output.end
    if step > run.progress_step:
        run.progress_step, run.progress_at = step, NOW
    place.lines_read = first_line + len(lines)
    metrics.store(session, run_id, attempt, points)
    if written:
        statement = insert(RunCompletion).values(list(written.values()))
        columns = ("attempt", "prompt", "completion", "tokens", "ended", "rewards")
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["run_id", "step", "index"], set_={name: statement.excluded[name] for name in columns}
            )
        )
    if manifests:
        _forget_older(session, run)
    history.say(session, run, told)
    if state != run.state:
        history.move(session, run, "running", worker=run.lease_owner)
    elif told:
        ring(session, f"run:{run_id}")
    session.flush()
    return run.cancel_requested_at is not None
