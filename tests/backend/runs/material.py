"""What a run needs, small: a model, rows, and a spec that names both."""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.db import Sessions, unit_of_work
from backend.registry import service as registry
from backend.runs import attempts, leases, service
from backend.runs import events as said
from backend.runs.leases import Claimed, Machine
from backend.runs.specs import Checkpoints, DPOSpec, Optimization
from backend.runs.tables import Run

WORKER = Machine("gpu-1", "gpu-1", 1, [], 2, 8 << 30, 1 << 30, 100 << 30, "0.1.0")


def write_model(folder: Path) -> Path:
    """A whole model's folder with one tensor of one number."""
    folder.mkdir(parents=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.0))
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


class Material(NamedTuple):
    """Ids that a spec can name."""

    project_id: int
    model_id: int
    version_id: int

    def spec(self, steps: int = 40, **more: Any) -> DPOSpec:
        """A spec over them."""
        return DPOSpec(
            base_model=self.model_id,
            dataset=self.version_id,
            optimization=Optimization(steps=steps),
            checkpoints=Checkpoints(every_steps=more.pop("every", 5)),
            **more,
        )


def make_material(session: Session, actor: Actor, project_id: int, folder: Path) -> Material:
    """A registered model and a preference version in the project."""
    model = registry.register_folder(session, project_id, write_model(folder / "tiny-model"), "tiny")
    dataset = datasets.create_dataset(session, actor, project_id, "pairs")
    rows = [{"prompt": f"{n} + 1?", "chosen": str(n + 1), "rejected": str(n)} for n in range(10)]
    version = datasets.create_version(
        session, dataset.id, rows, RowType.PREFERENCE, origin={"kind": "test"}, created_by=actor.person_id
    )
    return Material(project_id, model.id, version.id)


def submit(sessions: Sessions, actor: Actor, material: Material, **more: Any) -> int:
    """A queued run's id."""
    key = more.pop("idempotency_key", None)
    with unit_of_work(sessions) as session:
        return service.submit_run(session, actor, material.project_id, material.spec(**more), idempotency_key=key).id


def hello(sessions: Sessions, name: str = "gpu-1", slots: int = 1) -> None:
    """Let the worker *name* be known."""
    with unit_of_work(sessions) as session:
        leases.worker_heard(session, Machine(**{**vars(WORKER), "name": name, "slots": slots}), fresh=True)


def claim(sessions: Sessions, name: str = "gpu-1", *, lease: float = 60, folder: str = "a", resume: int = 0) -> Claimed:
    """Claim the next run and begin its attempt."""
    with unit_of_work(sessions) as session:
        claimed = leases.claim(session, name, f"nowhere|1|{name}", lease)
        assert claimed is not None
        attempts.begin(session, claimed.run_id, claimed.fence, folder, resume)
        return claimed


def started(total: int = 40, first: int = 0) -> said.Started:
    """The event with which training begins."""
    return said.Started(
        total_steps=total, first_step=first, train_rows=9, held_out_rows=1, trainable_parameters=1, total_parameters=1, device="cpu"
    )  # fmt: skip


def state_of(sessions: Sessions, run_id: int) -> str:
    """The run's state now."""
    with sessions() as session:
        return session.get_one(Run, run_id).state


def record(sessions: Sessions, c: Claimed, first: int, lines: list[Any], **more: Any) -> None:
    """Say *lines*, the first of them line *first* of the attempt's file."""
    with unit_of_work(sessions) as session:
        attempts.record(session, c.run_id, c.fence, c.attempt, first, lines, **more)


def conclude(sessions: Sessions, c: Claimed, ending: leases.Ending) -> None:
    """End the attempt."""
    with unit_of_work(sessions) as session:
        leases.conclude(session, c.run_id, c.fence, ending, pause_seconds=0)


def steps(first: int, last: int, scale: float = 1.0) -> list[Any]:
    """The metrics of steps *first* to *last*, with a loss that falls."""
    return [said.Metrics(step=n, values={"loss": scale / n, "grad_norm": float(n)}) for n in range(first, last + 1)]
