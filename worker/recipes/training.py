"""The frame every training recipe shares: arguments from the spec, evaluation, checkpoints, stopping, the end.

A recipe file makes a trainer (``class SFT(Frame, SFTTrainer)``) and hands it to :func:`carry_out`. The frame keeps
four promises. Evaluating and generating never change the training: both run on a forked random state. A checkpoint is
complete or absent: written aside, synced, listed in ``manifest.json``, renamed. A resumed run equals the unbroken one,
counters included. A request to stop is answered after the step, or within a token while evaluating.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from backend.runs.events import Checkpoint, Completion, Completions, Finished, Note, Started
from backend.runs.specs import FSDP, Adapter, DeepSpeed, Launch, TrainingSpec
from worker import devices, networks, ranks
from worker.recipes.probe import Probe, lengths
from worker.report import Report, SpecCannotWork, Stop, StopRequested
from worker.rows import Prepared

MANIFEST = "manifest.json"
_PROGRESS = "recipe.json"
"""What the trainer's own state leaves out: the spec, the tokens seen, the last step evaluated."""


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")

Show = Callable[[], list[Completion]]
"""Held-out texts to be read at an evaluation."""


def arguments(launch: Launch, prepared: Prepared) -> dict[str, Any]:
    """``TrainingArguments`` that every method shares."""
    spec: TrainingSpec = launch.spec
    how = spec.optimization
    gpu = torch.cuda.is_available()
    held_out = len(prepared.held_out)
    # of what TRL says of tokens (entropy, logits) it averages over batches: nearly equal ones keep that honest
    eval_batch = math.ceil(held_out / math.ceil(held_out / how.batch_size))
    return {
        "output_dir": str(launch.folder / "checkpoints" / ".writing"),
        "seed": spec.seed,
        "max_steps": how.steps,
        "per_device_train_batch_size": how.batch_size,
        "per_device_eval_batch_size": eval_batch,
        "gradient_accumulation_steps": how.accumulation,
        "learning_rate": how.learning_rate,
        "lr_scheduler_type": {"constant": "constant_with_warmup"}.get(how.schedule, how.schedule),
        "warmup_steps": how.warmup_steps,
        "weight_decay": how.weight_decay,
        "adam_beta2": how.beta2,
        "max_grad_norm": how.max_gradient_norm,
        "max_length": None,  # worker.rows has cut, and counted
        "eval_strategy": "steps",
        "eval_steps": spec.evaluation.every_steps,
        "save_strategy": "steps",
        "save_steps": spec.checkpoints.every_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a NaN is what people look for
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_bf16_supported(),
        "gradient_checkpointing": gpu,
        "dataloader_pin_memory": gpu,
        **devices.arguments(spec.devices),
    }


class Frame(Trainer):
    """Mixed in before a TRL trainer."""

    launch: Launch
    report: Report
    stop: Stop
    show: Show
    processing_class: PreTrainedTokenizerBase
    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int
    evaluated: int = -1
    """Last step that was evaluated."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Rows arrive tokenized (:mod:`worker.rows`)."""
        return dataset

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """A checkpoint is described by its run."""

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """What happens inside leaves no trace in the training's random state."""
        device = self.args.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield

    def longest_batch(self, rows: int) -> dict[str, Any]:
        """The inputs of a loss over the *rows* longest rows, for the probe.

        A method that samples overrides it: prompts are not what its loss is taken over.
        """
        learned: Any = self._remove_unused_columns(self.train_dataset, "training")
        longest = sorted(enumerate(lengths(learned)), key=lambda row: (-row[1], row[0]))[:rows]
        collate: Any = self.data_collator
        batch: dict[str, Any] = collate([learned[index] for index, _ in longest])
        return batch

    def longest_row(self) -> int:
        """Tokens of the longest row that is learned from, for the probe's advice."""
        return max(lengths(self.train_dataset))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Metrics of the held-out rows, then texts to be read; broken off when somebody asks to stop."""
        step = self.state.global_step
        try:
            with self.apart():
                metrics: dict[str, float] = super().evaluate(*args, **kwargs)
                self._show(step)
            self.evaluated = step
        except StopRequested:
            self._metrics["eval"].clear()
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        return metrics

    def write_model(self, folder: Path) -> None:
        """Write the finished model, or its adapter, and the tokenizer to *folder*."""
        model: Any = self.accelerator.unwrap_model(self.model)
        for config in getattr(model, "peft_config", {}).values():
            config.base_model_name_or_path = None  # a path of this machine says nothing elsewhere
        model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every process sees all held-out rows: TRL averages over batches, and shares of them have other averages."""
        if ranks.world() == 1:
            return super().get_eval_dataloader(eval_dataset)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        return DataLoader(rows, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator)

    def _show(self, step: int) -> None:
        """The first process writes texts, and the others wait; weights that are spread over processes write none."""
        interrupted = False
        try:
            whole = not isinstance(self.launch.spec.devices, FSDP | DeepSpeed)
            if whole and ranks.rank() == 0 and (samples := self.show()):
                self.report.say(Completions(step=step, samples=samples))
        except StopRequested:
            interrupted = True
        if ranks.any_of(interrupted):
            raise StopRequested

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process has saved its own random state
        if ranks.rank() == 0:
            self._publish_checkpoint(step)
        self.accelerator.wait_for_everyone()

    def _publish_checkpoint(self, step: int) -> None:
        written = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        (written / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads back
        progress = {
            "spec": self.launch.spec.model_dump(mode="json"),
            "num_tokens": self._total_train_tokens,
            "evaluated": self.evaluated,
        }
        (written / _PROGRESS).write_text(json.dumps(progress))
        publish(written, self.launch.folder / "checkpoints" / f"step-{step}")
        self.report.say(Checkpoint(step=step, folder=f"checkpoints/step-{step}"))
        _prune(self.launch.folder / "checkpoints", self.launch.spec.checkpoints.keep)


class _Follow(TrainerCallback):
    """Passes the log on, and the request to stop in."""

    def __init__(self, report: Report, stop: Stop) -> None:
        self.report = report
        self.stop = stop

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        self.report.metrics(state.global_step, logs or {})
        state.log_history.clear()  # it is in the events; kept here it would grow every checkpoint

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if ranks.any_of(self.stop.requested):
            raise StopRequested

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if ranks.any_of(self.stop.requested) and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # the resumed run makes up for it
        return control


def carry_out(launch: Launch, report: Report, stop: Stop, trainer: Frame, prepared: Prepared, show: Show) -> None:
    """Train from the start or a checkpoint to the last step, or until somebody asks to stop."""
    spec: TrainingSpec = launch.spec
    trainer.launch, trainer.report, trainer.stop, trainer.show = launch, report, stop, show
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Follow(report, stop))
    trainer.add_callback(Probe(trainer))
    first_step, due = 0, True
    if launch.resume_from is not None:
        progress = check_checkpoint(launch.resume_from, spec)
        first_step = int(progress["step"])
        trainer._total_train_tokens = progress["num_tokens"]
        trainer.evaluated = progress["evaluated"]
        due = first_step % spec.evaluation.every_steps == 0 and trainer.evaluated != first_step
    trainer.args.eval_on_start = due
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(spec.devices, DeepSpeed):  # which keeps what learns in single precision by itself
        networks.lift(model)
    parameters = networks.count(model)
    for note in prepared.notes:
        report.say(note)
    if isinstance(spec.devices, FSDP | DeepSpeed) and spec.evaluation.completions:
        report.say(Note(text="The weights are spread over processes, so no held-out texts are written."))
    stop.save_first()
    report.say(
        Started(
            total_steps=spec.optimization.steps,
            first_step=first_step,
            train_rows=len(prepared.train),
            held_out_rows=len(prepared.held_out),
            held_out_ties=ties(prepared.held_out),
            trainable_parameters=parameters.trainable,
            total_parameters=parameters.total,
            device=(f"{ranks.world()} × " if ranks.world() > 1 else "")
            + (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"),
            packages={"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        )
    )
    if first_step < spec.optimization.steps:
        trainer.train(resume_from_checkpoint=str(launch.resume_from) if launch.resume_from else None)
    else:  # it was stopped between its last step and its end
        trainer._load_from_checkpoint(str(launch.resume_from))
    step = max(first_step, trainer.state.global_step)
    if step < spec.optimization.steps:
        report.say(Finished(outcome="stopped", step=step))
        return
    _save_model(launch, trainer, report)
    report.say(Finished(outcome="completed", step=step, model="model"))


def ties(pairs: Dataset) -> int:
    """Pairs of which neither side is better; a method that reads no probability has left them out already."""
    return sum(p == 0.5 for p in pairs["probability"]) if "probability" in pairs.column_names else 0


def _save_model(launch: Launch, trainer: Frame, report: Report) -> None:
    """The finished model as ``model/``: full weights, or the adapter.

    An adapter trained on top of an adapter is merged: two levels would need two bases to load.
    """
    writing, adapter = launch.folder / ".model", launch.folder / ".adapter"
    if isinstance(launch.spec.devices, FSDP | DeepSpeed):
        trainer.save_model(str(writing))  # every process gives its part
    if ranks.rank() > 0:
        return
    if isinstance(launch.spec.weights, Adapter) and launch.adapter_base is not None:
        report.say(Note(text="The model is saved with full weights: it continues an adapter, and both are merged."))
        shutil.rmtree(adapter, ignore_errors=True)
        trainer.write_model(adapter)
        networks.merge(networks.merged(launch.folder), adapter, writing)  # not in memory: it may hold 4 bits there
        shutil.rmtree(adapter)
    elif not isinstance(launch.spec.devices, FSDP | DeepSpeed):
        shutil.rmtree(writing, ignore_errors=True)
        trainer.write_model(writing)
    publish(writing, launch.folder / "model")


# --- checkpoints -------------------------------------------------------------------------------------------------


def publish(written: Path, final: Path) -> None:
    """Make the folder *written* appear as *final*, complete and durable, with a manifest of its files."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    manifest = [
        {"name": str(path.relative_to(written)), "size": path.stat().st_size, "sha256": _sha256(path)} for path in files
    ]
    (written / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*files, written / MANIFEST, written]:
        _sync(path)
    if final.exists():  # from an earlier try in the same folder
        _remove(final)
    written.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(checkpoint: Path) -> None:
    (checkpoint / MANIFEST).unlink(missing_ok=True)  # first: half a checkpoint must not look whole
    shutil.rmtree(checkpoint)


def _missing(spec: TrainingSpec, listed: set[str]) -> list[str]:
    """Files without which the trainer would silently start something afresh, and diverge."""
    number = devices.processes(spec.devices)
    needed = ["trainer_state.json", "scheduler.pt", _PROGRESS]
    needed += ["rng_state.pth"] if number == 1 else [f"rng_state_{rank}.pth" for rank in range(number)]
    match spec.devices:
        case FSDP():
            optimizer = "optimizer"
        case DeepSpeed():
            optimizer = "global_step"
        case _:
            optimizer = "optimizer.pt"
    if not any(name.startswith(optimizer) for name in listed):
        needed.append(optimizer)
    return [name for name in needed if name not in listed]


def _prune(folder: Path, keep: int) -> None:
    steps = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    for old in steps[:-keep]:
        _remove(old)


def check_checkpoint(folder: Path, spec: TrainingSpec) -> dict[str, Any]:
    """What the checkpoint knows about its run, with its ``step``.

    Raises :class:`SpecCannotWork` unless the manifest verifies, every file is there, and it belongs to *spec*.
    """

    def damaged(what: str) -> SpecCannotWork:
        return SpecCannotWork(f"the checkpoint {folder.name} {what}", remedy="Resume from an earlier checkpoint.")

    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        for entry in manifest:
            path = folder / entry["name"]
            if path.stat().st_size != entry["size"] or _sha256(path) != entry["sha256"]:
                raise damaged(f"is damaged: {entry['name']} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(f"is damaged: {error.__class__.__name__} in its manifest or a file it names") from error
    listed = {entry["name"] for entry in manifest}
    missing = _missing(spec, listed)
    if not listed.intersection(_WEIGHTS):
        missing.append("the weights")
    if missing:
        raise damaged(f"is not complete: {', '.join(missing)} missing")
    progress: dict[str, Any] = json.loads((folder / _PROGRESS).read_bytes())
    if progress["spec"] != spec.model_dump(mode="json"):
        raise damaged("belongs to a run with another spec")
    progress["step"] = json.loads((folder / "trainer_state.json").read_bytes())["global_step"]
    return progress
