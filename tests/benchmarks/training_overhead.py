"""What the studio costs per training step against the same TRL script by hand: ``python -m tests.benchmarks.training_overhead``.

Both train in this process on the same rows, taking turns of ``BLOCK`` steps, so that a busy machine hits them alike.
Evaluation, generation and checkpoints are excluded on both sides; what is measured is the frame: arguments, callbacks,
and one event per step. Printed: the ratio of the medians, and of the sums, of the times per step.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from backend.datasets.rows import RowType
from backend.demo import corpus, specs
from backend.runs.specs import Checkpoints, Evaluation, Launch, Optimization
from tests.worker.running import BASE, write_rows
from worker import networks, rows, splitting
from worker.recipes import dpo, training
from worker.report import Report, Stop

BLOCK = 10


class Turns(TrainerCallback):
    """Two trainings in two threads, one at a time, ``BLOCK`` steps each; the time of every step."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.mine, self.other = mine, other
        self.seconds: list[float] = []
        self.since = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.mine.acquire()
        self.since = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        # from step begin to step begin: logging and events belong to the step before
        now = time.perf_counter()
        if state.global_step:
            self.seconds.append(now - self.since)
        if state.global_step and state.global_step % BLOCK == 0:
            self.other.release()
            self.mine.acquire()
        self.since = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.other.release()
        self.other.release()


def main(steps: int = 150) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = corpus.preference_pairs(2000, 0)
        path = write_rows(folder / "rows.parquet", data)
        never = {
            "evaluation": Evaluation(every_steps=steps + 1, completions=0),
            "checkpoints": Checkpoints(every_steps=steps + 1),
        }
        spec = specs.dpo(1, 1).model_copy(
            update={**never, "optimization": Optimization(steps=steps, batch_size=16, learning_rate=1e-4)}
        )
        launch = Launch(spec=spec, folder=folder, base_model=BASE, rows=path, row_type=RowType.PREFERENCE)
        tokenizer = networks.load_tokenizer(BASE)
        prepared = rows.prepare(launch, tokenizer, rows.comparisons)
        a, b = threading.Semaphore(1), threading.Semaphore(0)
        ours, hand = Turns(a, b), Turns(b, a)

        common = {"beta": spec.beta, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}
        studio = dpo.DPO(
            networks.load(BASE),
            ref_model=networks.load(BASE),
            args=DPOConfig(
                **{**training.arguments(launch, prepared), "eval_strategy": "no", "save_strategy": "no"}, **common
            ),
            train_dataset=prepared.train,
            processing_class=tokenizer,
        )
        report = Report(folder / "events.jsonl")
        studio.remove_callback(PrinterCallback)
        studio.add_callback(training._Follow(report, Stop()))
        studio.add_callback(ours)

        learned = {splitting.canonical_prompt(row) for row in prepared.examples}
        script = DPOTrainer(
            networks.load(BASE),
            ref_model=networks.load(BASE),
            args=DPOConfig(
                output_dir=str(folder / "script"),
                max_steps=steps,
                per_device_train_batch_size=16,
                learning_rate=1e-4,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                max_length=128,
                **common,
            ),
            train_dataset=Dataset.from_list([row for row in data if splitting.canonical_prompt(row) not in learned]),
            processing_class=tokenizer,
        )
        script.remove_callback(PrinterCallback)
        script.add_callback(hand)

        threads = [threading.Thread(target=trainer.train) for trainer in (studio, script)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        theirs, mine = hand.seconds[BLOCK:], ours.seconds[BLOCK:]
        print(
            f"DPO, {len(mine)} steps each: by hand {1e3 * statistics.median(theirs):.1f} ms, "
            f"studio {1e3 * statistics.median(mine):.1f} ms per step (medians); "
            f"ratio of medians {statistics.median(mine) / statistics.median(theirs):.3f}, "
            f"of sums {sum(mine) / sum(theirs):.3f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
