"""What a GRPO step costs here and in a plain TRL script: ``python -m tests.benchmarks.online [steps] [prompt words]``.

Both learn the demo's sums in this process, in turns of ``BLOCK`` steps, so that a busy machine hits them alike: the same
model, prompts a step, completions a prompt, length, learning rate and loss. Ours also measures the divergence from the
reference, which the script at β = 0 does not. Printed: milliseconds per step by the clock, those of the processor and
where they go, and what was learned. Evaluation and checkpoints are left out on both sides.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from backend.datasets.rows import RowType
from backend.demo import corpus, specs
from backend.runs.specs import Checkpoints, Evaluation, Launch
from tests.benchmarks.training_overhead import Turns
from tests.worker.running import BASE, write_rows
from worker import networks, online, rows
from worker.recipes import grpo, training
from worker.report import Report, Stop
from worker.rewards import Composition

STEPS = 40
GROUP = 8


class Learned(TrainerCallback):
    """The reward of every step."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            self.rewards.append(logs["reward"])


def timed(owner: Any, names: dict[str, str]) -> dict[str, float]:
    """Processor seconds in methods of *owner*, name → what they are for; a method called by another counts for both."""
    spent: dict[str, float] = defaultdict(float)

    def wrap(method: Callable[..., Any], what: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent[what] += time.thread_time() - started

        return run

    for name, what in names.items():
        setattr(owner, name, wrap(getattr(owner, name), what))
    return spent


def lengthened(data: list[dict[str, Any]], words: int) -> list[dict[str, Any]]:
    """The same sums behind a longer beginning, as real prompts have one."""
    talk = " ".join(["Thank you for your patience."] * (words // 5))
    return [
        {**row, "prompt": [{"role": "user", "content": f"{talk} {row['prompt'][0]['content']}".strip()}]}
        for row in data
    ]


def main(steps: int = STEPS, words: int = 0) -> None:
    """Train both, and say what they cost."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = lengthened(corpus.sums(2000, 0), words)
        spec = specs.grpo(1, 1)
        spec = spec.model_copy(
            update={
                "optimization": spec.optimization.model_copy(update={"steps": steps}),
                "evaluation": Evaluation(every_steps=steps + 1, completions=0),
                "checkpoints": Checkpoints(every_steps=steps + 1),
                "max_length": 1024,
            }
        )
        how = spec.optimization
        launch = Launch(
            spec=spec,
            folder=folder,
            base_model=BASE,
            rows=write_rows(folder / "rows.parquet", data),
            row_type=RowType.PROMPT_ONLY,
        )
        tokenizer = networks.load_tokenizer(BASE)
        prepared = rows.prompts(launch, tokenizer, spec.columns())
        a, b = threading.Semaphore(1), threading.Semaphore(0)
        ours, hand = Turns(a, b), Turns(b, a)
        learned_ours, learned_hand = Learned(), Learned()

        config = online.arguments(launch, prepared, group_size=GROUP)
        config.eval_strategy, config.save_strategy = "no", "no"
        rewards = Composition(spec.rewards, launch, max_new_tokens=spec.sampling.max_new_tokens)
        studio = grpo.GRPO(
            launch,
            prepared,
            rewards,
            networks.load(BASE),
            tokenizer,
            config=config,
            reference=networks.load(BASE),
            adapter=None,
        )
        studio.stop = Stop()
        studio.remove_callback(PrinterCallback)
        for callback in (training._Follow(Report(folder / "events.jsonl"), studio.stop), ours, learned_ours):
            studio.add_callback(callback)
        spent_ours = timed(
            studio,
            {
                "write": "sample and score",
                "referred": "divergence from the reference",
                "_compute_loss": "forward pass",
                "training_step": "all of it",
            },
        )

        def right(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
            texts = [completion[0]["content"] for completion in completions]
            return [float(text.strip(". ").split(" ")[-1] == gold) for text, gold in zip(texts, answer, strict=True)]

        script = GRPOTrainer(
            networks.load(BASE),
            reward_funcs=[right],
            args=GRPOConfig(
                output_dir=str(folder / "script"),
                max_steps=steps,
                per_device_train_batch_size=how.batch_size,
                num_generations=GROUP,
                max_completion_length=spec.sampling.max_new_tokens,
                learning_rate=how.learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=how.warmup_steps,
                epsilon_high=spec.clip_high,
                loss_type="dapo",
                top_k=0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(data),
            processing_class=tokenizer,
        )
        script.remove_callback(PrinterCallback)
        for callback in (hand, learned_hand):
            script.add_callback(callback)
        spent_hand = timed(
            script,
            {
                "_generate_single_turn": "sample",
                "_calculate_rewards": "score",
                "_compute_loss": "forward pass",
                "training_step": "all of it",
            },
        )

        threads = [threading.Thread(target=trainer.train) for trainer in (studio, script)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for name, turns, spent, learned in (
            ("by hand", hand, spent_hand, learned_hand),
            ("studio", ours, spent_ours, learned_ours),
        ):
            where = ", ".join(f"{what} {1e3 * seconds / steps:.0f}" for what, seconds in spent.items())
            print(f"{name}: {1e3 * statistics.median(turns.seconds):.0f} ms per step (median); ms: {where}")
            print(f"  reward {statistics.mean(learned.rewards[:5]):.2f} → {statistics.mean(learned.rewards[-5:]):.2f}")
        medians = [statistics.median(turns.seconds) for turns in (hand, ours)]
        sums = [spent["all of it"] for spent in (spent_hand, spent_ours)]
        print(
            f"GRPO, {steps} steps each, prompts of {len(prepared.train[0]['prompt_ids'])} tokens: "
            f"{medians[0] / medians[1]:.2f} times as fast by the clock's medians, "
            f"{sums[0] / sums[1]:.2f} by the processor's time; load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
