"""What each demo run improves on held-out prompts: ``python -m tests.benchmarks.learning [method …]``.

Three seeds per method, from the demo's base model, with the specs that the demo project offers. Printed before → after:
the method's own held-out metric, and for policies the share of polite and of well-formed replies and of right sums
(sampled at temperature 1, and greedy).
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from backend.datasets.rows import RowType
from backend.demo import corpus, specs
from backend.runs.specs import LoRA, TrainingSpec
from tests.worker.running import BASE, launch, run, write_rows
from worker import networks, rows
from worker.sampling import complete

ADAPTER = LoRA(rank=8, alpha=16)
METHODS: dict[str, tuple[Any, str]] = {
    "sft": (specs.sft, "eval_loss"),
    "reward": (specs.reward, "eval_accuracy"),
    "dpo": (specs.dpo, "eval_rewards/accuracies"),
    "ipo": (specs.ipo, "eval_rewards/accuracies"),
    "sft_lora": (lambda *a, **k: specs.sft(*a, weights=ADAPTER, **k), "eval_loss"),
    "reward_lora": (lambda *a, **k: specs.reward(*a, weights=ADAPTER, **k), "eval_accuracy"),
    "dpo_lora": (lambda *a, **k: specs.dpo(*a, weights=ADAPTER, **k), "eval_rewards/accuracies"),
}


def behavior(folder: Path, count: int = 200) -> dict[str, float]:
    """How the model in *folder* answers held-out prompts: shares of *count*."""
    torch.set_num_threads(1)
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(networks.load(BASE), str(folder)).merge_and_unload()
    else:
        model = networks.load(folder)
    tokenizer = networks.load_tokenizer(BASE)
    encoder = rows.Encoder(tokenizer, 128)
    shares: dict[str, float] = {}
    for share_sums in (0.0, 1.0):
        prompts = [row["prompt"] for row in corpus.prompts(count, 5, share_sums=share_sums)]
        ids = [tokenizer(encoder.render(p, reply=True), add_special_tokens=False)["input_ids"] for p in prompts]
        for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            texts = [s.text for s in complete(model, tokenizer, ids, max_new_tokens=56, temperature=temperature)]
            if share_sums:
                right = [corpus.answer_is_right(p[0]["content"], t) for p, t in zip(prompts, texts, strict=True)]
                shares[f"right {mode}"] = sum(right) / count
            else:
                shares[f"polite {mode}"] = sum(map(corpus.is_polite, texts)) / count
                shares[f"well-formed {mode}"] = sum(map(corpus.is_well_formed, texts)) / count
    return shares


def main(names: list[str]) -> None:
    before = behavior(BASE)
    print("base:", "  ".join(f"{key} {value:.2f}" for key, value in before.items()), flush=True)
    for name in names or list(METHODS):
        make, metric = METHODS[name]
        for seed in (0, 1, 2):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                spec: TrainingSpec = make(1, 1, seed=seed)
                shows = name.startswith("sft")
                data = corpus.demonstrations(3000, 10) if shows else corpus.preference_pairs(3000, 10)
                row_type = RowType.PROMPT_COMPLETION if shows else RowType.PREFERENCE
                path = write_rows(folder / "rows.parquet", data)
                started = time.monotonic()
                attempt = run(launch(folder / "run", spec, path, row_type))
                seconds = time.monotonic() - started
                metrics = attempt.metrics()
                line = (
                    f"{name:12s} seed {seed}  {metric} {metrics[0][metric]:.3f} → {metrics[max(metrics)][metric]:.3f}"
                )
                if not name.startswith("reward"):
                    after = behavior(folder / "run" / "model")
                    line += "  " + "  ".join(f"{key} {before[key]:.2f} → {after[key]:.2f}" for key in after)
                print(f"{line}  ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
