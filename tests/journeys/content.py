"""A project worth looking at, made through services and tables: what a team has after a day of training the tiny model."""

import json
import math
import random
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.datasets.tables import DatasetVersion
from backend.demo import specs as demo
from backend.registry.tables import Model
from backend.runs import metrics, readout, specs
from backend.runs.tables import Run, RunAttempt, RunCheckpoint, RunCompletion, RunEvent, Worker

PROMPTS = (
    "What is 7 + 5?",
    "Please add 12 and 30.",
    "My parcel has not arrived. What now?",
    "How much is 4 + 4 + 4?",
    "Can I return a lamp after 20 days?",
    "What is 19 + 2?",
)
BEFORE = ("7 + 5 is 13", "12 30 42 42 42", "parcel", "4 + 4 + 4 = 12 = 12", "no", "21")
AFTER = (
    "7 + 5 = 12. The answer is 12.",
    "12 + 30 = 42. The answer is 42.",
    "I am sorry for the wait. I will look for the parcel right away and write to you today.",
    "4 + 4 = 8 and 8 + 4 = 12. The answer is 12.",
    "Yes, you can return it within 30 days. I will send you a label.",
    "19 + 2 = 21. The answer is 21.",
)


def base_model(session: Session, project_id: int, name: str = "tiny-llama", **more: Any) -> Model:
    """A model's row; its files are not needed by pages."""
    values = {
        "kind": "language",
        "manifest": [],
        "parameters": 412_000,
        "dtype": "F32",
        "architecture": "LlamaForCausalLM",
        "size_bytes": 1_650_000,
    }
    model = Model(project_id=project_id, name=name, **{**values, **more})
    session.add(model)
    session.flush()
    return model


def version(session: Session, actor: Actor, project_id: int, name: str, row_type: RowType, rows: int) -> DatasetVersion:
    """A dataset version of *rows* generated rows."""
    made = datasets.create_dataset(session, actor, project_id, name)
    prompt = [f"What is {n} + {n + 1}?" for n in range(rows)]
    if row_type is RowType.PREFERENCE:
        content = [
            {"prompt": text, "chosen": f"It is {2 * n + 1}.", "rejected": str(2 * n)} for n, text in enumerate(prompt)
        ]
    else:
        content = [{"prompt": text, "completion": f"It is {2 * n + 1}."} for n, text in enumerate(prompt)]
    return datasets.create_version(
        session, made.id, content, row_type, origin={"kind": "import"}, created_by=actor.person_id
    )


def _curve(key: str, step: int, total: int, noise: random.Random, pace: float) -> float:
    way = 1 - math.exp(-3 * pace * step / total)
    held_out = key.startswith("eval_")
    wild = noise.gauss(0, 0.01 if held_out else 0.05)
    name = key.removeprefix("eval_")
    match name:
        case "learning_rate":
            return 5e-4 * (1 - step / total)
        case "loss":
            return max(0.02, 0.69 - 0.45 * way + wild)
        case "grad_norm":
            return abs(1.2 + wild * 8)
        case "entropy":
            return 1.6 - 0.7 * way + wild
        case "rewards/accuracies" | "accuracy" | "mean_token_accuracy":
            return min(1.0, max(0.0, 0.5 + 0.38 * way + wild))
        case "rewards/margins" | "margin":
            return 1.7 * way + wild
        case "rewards/chosen":
            return 0.6 * way + wild
        case "rewards/rejected":
            return -1.1 * way + wild
        case "logps/chosen":
            return -42 - 3 * way + wild * 8
        case "logps/rejected":
            return -40 - 16 * way + wild * 8
        case "max_reward":
            return 0.3 + 1.5 * way + wild
        case "min_reward":
            return -0.3 - 1.5 * way + wild
        case "reward" | "rewards/correct/mean" | "solution_accuracy":
            return 0.4 + 0.5 * way + wild
        case "step_accuracy":
            return 0.62 + 0.2 * way + wild
        case "step_base_rate" | "solution_base_rate" | "length_accuracy":
            return 0.62
        case "rewards/length/mean":
            return -0.1 - 0.2 * way + wild
        case "kl":
            return 0.01 + 0.2 * way + abs(wild) / 10
        case "completions/mean_length":
            return 15 + 6 * way + 8 * wild
        case "frac_reward_zero_std" | "ece":
            return max(0.0, 0.1 + 0.3 * way + wild)
        case _ if name.startswith("reliability/"):
            kind, _, index = name.removeprefix("reliability/").partition("_")
            return 0.5 + 0.05 * int(index) + (0.02 * wild if kind == "confidence" else 0.5 * wild)
    return wild


KEYS: dict[str, list[str]] = {
    "sft": ["loss", "mean_token_accuracy", "entropy", "grad_norm", "learning_rate"],
    "reward": ["loss", "accuracy", "margin", "mean_reward", "min_reward", "max_reward", "grad_norm", "learning_rate"],
    "dpo": [
        "loss", "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected",
        "grad_norm", "learning_rate",
    ],
    "grpo": [
        "loss", "reward", "reward_std", "frac_reward_zero_std", "rewards/correct/mean", "rewards/length/mean", "kl", "entropy",
        "completions/mean_length", "completions/clipped_ratio", "grad_norm", "learning_rate",
    ],
    "process_reward": ["loss", "grad_norm", "learning_rate"],
}  # fmt: skip
_RELIABILITY = [f"eval_reliability/{name}_{index}" for index in range(10) for name in ("confidence", "accuracy")]
HELD_OUT = {
    "sft": ["eval_loss", "eval_mean_token_accuracy"],
    "reward": ["eval_loss", "eval_accuracy", "eval_margin", "eval_ece", "eval_length_accuracy", *_RELIABILITY],
    "grpo": ["eval_reward", "eval_rewards/correct/mean", "eval_rewards/length/mean", "eval_kl"],
    "process_reward": [
        "eval_loss", "eval_step_accuracy", "eval_step_base_rate", "eval_solution_accuracy", "eval_solution_base_rate", "eval_ece",
        *_RELIABILITY,
    ],
    "dpo": ["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"],
}  # fmt: skip


def _scores(method: str, index: int, share: float) -> dict[str, float | None]:
    """Of one completion; the third one's component could not answer."""
    if method == "grpo":
        return {"correct": None if index == 2 else float(share > 0.2 * index), "length": -0.1 * index}
    scores: dict[str, float | None] = {}
    if method == "process_reward":
        scores["score"] = 0.2 + 0.1 * index
        scores |= {f"step {n}": 0.9 - 0.1 * n for n in range(1, 4 + index)}
    return scores


def queued(session: Session, actor: Actor, project_id: int, spec: specs.TrainingSpec, name: str, **more: Any) -> Run:
    """A run that waits."""
    run = Run(
        project_id=project_id,
        name=name,
        method=spec.model_dump()["method"],
        spec=json.loads(spec.model_dump_json()),
        base_model_id=spec.base_model,
        dataset_version_id=spec.dataset,
        submitted_by_id=actor.person_id,
        request_sha256="0" * 64,
        total_steps=spec.optimization.steps,
        **more,
    )
    session.add(run)
    session.flush()
    return run


def _say(session: Session, run: Run, kind: str, at: datetime, data: dict[str, Any]) -> None:
    run.seq += 1
    session.add(RunEvent(run_id=run.id, seq=run.seq, kind=kind, attempt=run.attempt, at=at, data=data))


def measured(
    session: Session, run: Run, upto: int, *, seed: int = 0, pace: float = 1.0, broken_at: int | None = None
) -> Run:
    """Let *run* have taken *upto* steps: points, completions, a checkpoint, log lines. It is left running."""
    noise = random.Random(seed)
    total, moment = run.total_steps, readout.now(session)
    begin = moment - timedelta(seconds=1 + 0.6 * upto)
    run.state, run.attempt, run.fence = "starting", run.attempt + 1, run.fence + 1
    run.lease_owner, run.lease_until, run.heard_at, run.started_at = (
        "cpu-1",
        moment + timedelta(seconds=60),
        moment,
        begin,
    )
    session.flush()
    run.state = "running"
    session.add(
        RunAttempt(
            run_id=run.id, attempt=run.attempt, fence=run.fence, worker="cpu-1", folder="", resume_step=0, working_at=begin
        )
    )  # fmt: skip
    _say(
        session, run, "started", begin,
        {"total_steps": total, "first_step": 0, "train_rows": 1080, "held_out_rows": 120, "trainable_parameters": 412_000,
         "total_parameters": 412_000, "device": "cpu", "packages": {"torch": "2.13.0", "transformers": "5.23.0", "trl": "1.16.0"}},
    )  # fmt: skip
    _say(
        session,
        run,
        "log",
        begin,
        {"level": "info", "text": "1,080 rows to learn from, 120 held out; no prompt is on both sides."},
    )
    points = []
    for step in range(upto + 1):
        at = begin + timedelta(seconds=0.6 * step)
        keys = (KEYS[run.method] if step else []) + (HELD_OUT[run.method] if step % 20 == 0 or step == upto else [])
        for key in keys:
            value: Any = "nan" if step == broken_at and key == "grad_norm" else _curve(key, step, total, noise, pace)
            points.append(metrics.Point(key, step, value, at))
        if step % 20 == 0 and run.method != "reward":
            share = step / max(1, total)
            for index, prompt in enumerate(PROMPTS):
                text = AFTER[index] if noise.random() < share + 0.05 else BEFORE[index]
                session.add(RunCompletion(run_id=run.id, step=step, index=index, attempt=run.attempt, prompt=prompt, completion=text, tokens=len(text.split()) + 1, ended=noise.random() < 0.9, rewards=_scores(run.method, index, share)))  # fmt: skip
    metrics.store(session, run.id, run.attempt, points)
    if upto >= 20:
        step = upto // 20 * 20
        session.add(
            RunCheckpoint(
                run_id=run.id, step=step, attempt=run.attempt, fence=run.fence, manifest=[], size_bytes=5_000_000
            )
        )
        _say(session, run, "log", moment, {"level": "info", "text": f"Checkpoint at step {step} saved and verified."})
    if broken_at is not None:
        _say(
            session,
            run,
            "log",
            moment,
            {"level": "warning", "text": f"The gradient norm was not a number at step {broken_at}."},
        )
    run.progress_step, run.progress_at = upto, moment
    session.flush()
    return run


def ended(
    session: Session, run: Run, state: str = "succeeded", reason: str | None = None, remedy: str | None = None
) -> Run:
    """End *run*; a success leaves a model."""
    moment = readout.now(session)
    run.lease_owner = run.lease_until = None
    run.finished_at = moment
    run.exit_reason, run.remedy, run.state = reason, remedy, state
    session.flush()
    if state == "succeeded":
        kind = "reward" if run.method == "reward" else "language"
        base_model(
            session, run.project_id, f"tiny-{run.method}-{run.id}", kind=kind, run_id=run.id, step=run.total_steps
        )
    return run


def worker(
    session: Session, name: str, *, heard_seconds: float = 2, slots: int = 1, draining: bool = False, gpus: int = 0
) -> None:
    """A worker that spoke *heard_seconds* ago."""
    gib = 2**30
    session.add(
        Worker(
            name=name, host=f"{name}.lab", slots=slots, cores=2 if not gpus else 16, memory_bytes=8 * gib if not gpus else 128 * gib,
            devices=[{"name": f"GPU {n}, 80 GiB", "memory_bytes": 80 * gib, "used_bytes": (25 + 50 * n) * gib} for n in range(gpus)],
            memory_used_bytes=3 * gib, disk_free_bytes=90 * gib, version="0.1.0", draining=draining,
            heard_at=readout.now(session) - timedelta(seconds=heard_seconds),
        )
    )  # fmt: skip
    session.flush()


def sampled_runs(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """Three runs of GRPO that differ in their seed, one more with another reward, and a process reward model."""
    tiny = base_model(session, project_id, "tiny-chat")
    prompts = version(session, actor, project_id, "sums", RowType.PROMPT_COMPLETION, 400)
    correct = {"kind": "number", "name": "correct"}
    good = {"components": [correct, {"kind": "length", "weight": 0.5, "target": 16}]}
    ids = {}
    for seed in range(3):
        spec = demo.grpo(tiny.id, prompts.id, seed=seed, rewards=good)
        run = measured(session, queued(session, actor, project_id, spec, f"GRPO, seed {seed}"), 80, seed=seed)
        ids[f"grpo{seed}"] = ended(session, run).id
    heavier = {"components": [correct, {"kind": "length", "weight": 1, "target": 16}]}
    spec = demo.grpo(tiny.id, prompts.id, rewards=heavier)
    ids["heavier"] = measured(session, queued(session, actor, project_id, spec, "GRPO, length 1"), 45, seed=9).id
    judge = demo.process_reward(tiny.id, prompts.id)
    ids["process"] = measured(session, queued(session, actor, project_id, judge, "Step judge"), 60, seed=11).id
    return ids


def a_day_of_runs(session: Session, actor: Actor, project_id: int) -> dict[str, int]:
    """Runs in every state, by name → id."""
    tiny = base_model(session, project_id)
    demos = version(session, actor, project_id, "polite-demos", RowType.PROMPT_COMPLETION, 1200)
    pairs = version(session, actor, project_id, "support-tone", RowType.PREFERENCE, 1200)
    worker(session, "cpu-1")
    worker(session, "gpu-1", heard_seconds=47, gpus=2, slots=2)
    worker(session, "gpu-2", draining=True, gpus=1)
    ids = {}

    def keep(name: str, run: Run) -> None:
        ids[name] = run.id

    keep(
        "sft",
        ended(
            session,
            measured(
                session, queued(session, actor, project_id, demo.sft(tiny.id, demos.id), "SFT on polite-demos"), 80
            ),
        ),
    )
    keep(
        "reward",
        ended(
            session,
            measured(
                session,
                queued(session, actor, project_id, demo.reward(tiny.id, pairs.id), "Reward model on support-tone"),
                60,
                seed=2,
            ),
        ),
    )
    first = measured(
        session,
        queued(session, actor, project_id, demo.dpo(tiny.id, pairs.id), "DPO on support-tone, β 0.5"),
        100,
        seed=3,
    )
    keep("dpo", ended(session, first))
    second = queued(
        session,
        actor,
        project_id,
        demo.dpo(tiny.id, pairs.id, beta=0.1, weights=specs.LoRA()),
        "DPO with LoRA, β 0.1",
        parent_id=first.id,
    )
    keep("lora", ended(session, measured(session, second, 100, seed=4, pace=0.6)))
    bad = measured(
        session, queued(session, actor, project_id, demo.ipo(tiny.id, pairs.id), "IPO, β 5"), 37, seed=5, broken_at=30
    )
    keep(
        "failed",
        ended(session, bad, "failed", "The loss was not a number for ten steps.", "Try a smaller learning rate."),
    )
    stopped = measured(
        session, queued(session, actor, project_id, demo.sft(tiny.id, demos.id, seed=1), "SFT, seed 1"), 22, seed=6
    )
    keep("cancelled", ended(session, stopped, "cancelled", "Cancelled by a person."))
    silent = measured(
        session,
        queued(session, actor, project_id, demo.reward(tiny.id, pairs.id, seed=1), "Reward model, seed 1"),
        41,
        seed=7,
    )
    moment = readout.now(session)
    silent.lease_owner, silent.heard_at = "gpu-1", moment - timedelta(seconds=47)
    keep("silent", silent)
    keep(
        "running",
        measured(
            session,
            queued(session, actor, project_id, demo.dpo(tiny.id, pairs.id, seed=1), "DPO on support-tone, seed 1"),
            63,
            seed=8,
        ),
    )
    keep(
        "queued", queued(session, actor, project_id, demo.dpo(tiny.id, pairs.id, beta=1.0), "DPO on support-tone, β 1")
    )
    session.flush()
    return ids
