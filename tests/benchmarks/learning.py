"""The table of what every method improves on held-out prompts: ``python -m tests.benchmarks.learning [row …]``.

Each row is a run of the demo's tiny model with the spec that the demo project offers, three seeds, one process each.
Printed as Markdown: the method's own held-out figure before → after with its spread over the seeds, a second figure that
the loss does not know (the share of polite replies, of right sums), seconds of the whole process, and its peak memory.
Results are kept in ``--work``; an interrupted table goes on where it stopped, ``--jobs`` runs several rows at once.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from backend.datasets.rows import Row, RowType
from backend.demo import corpus, specs
from backend.runs.specs import LoRA, ModelFolder, TrainingSpec, ValueHead, ValueModel
from backend.runs.specs.rewards import Cautious, Mean, Minimum
from tests.worker.running import BASE, Attempt, launch, write_rows
from worker import networks, rows, scoring
from worker.sampling import complete

SEEDS = (0, 1, 2)
ADAPTER = LoRA(rank=8, alpha=16)

Judged = Literal["", "polite sampled", "right sampled", "right greedy", "polite greedy"]


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    group: str
    spec: Callable[..., TrainingSpec]
    data: Callable[[], list[Row]]
    row_type: RowType
    figure: str
    """The held-out metric of the run."""
    judged: Judged = ""
    """What an independent look at the finished model counts."""
    needs: str = ""
    """The line whose model of the same seed scores completions, as model 2."""


PAIRS = partial(corpus.preference_pairs, 3000, 10)
SHOWN = partial(corpus.demonstrations, 3000, 10)
ACCURACY = "eval_rewards/accuracies"


def _pairs(spec: Callable[..., TrainingSpec], **more: Any) -> Line:
    made = partial(spec, **more)
    return Line("offline preference", made, PAIRS, RowType.PREFERENCE, ACCURACY, "polite sampled")


def _sums(spec: Callable[..., TrainingSpec], **more: Any) -> Line:
    data = partial(corpus.sums, 2000, 10)
    return Line("GRPO family", partial(spec, **more), data, RowType.PROMPT_ONLY, "eval_reward", "right sampled")


def _ppo(value: ValueHead | ValueModel | None = None, **more: Any) -> Line:
    def spec(base_model: int, dataset: int, **also: Any) -> TrainingSpec:
        made = specs.ppo(base_model, dataset, reward_model=2, **more, **also)
        return made if value is None else made.model_copy(update={"value": value})

    data = partial(corpus.prompts, 1000, 10, side="train", share_sums=0.0)
    needs = "Reward model, LoRA" if more else "Reward model"
    return Line("PPO", spec, data, RowType.PROMPT_ONLY, "eval_reward", "polite sampled", needs)


LINES: dict[str, Line] = {
    "SFT": Line("supervised", specs.sft, SHOWN, RowType.PROMPT_COMPLETION, "eval_loss", "polite sampled"),
    "SFT, LoRA": Line(
        "supervised",
        partial(specs.sft, weights=ADAPTER),
        SHOWN,
        RowType.PROMPT_COMPLETION,
        "eval_loss",
        "polite sampled",
    ),
    "SFT, DoRA": Line(
        "supervised",
        partial(specs.sft, weights=ADAPTER.model_copy(update={"dora": True})),
        SHOWN,
        RowType.PROMPT_COMPLETION,
        "eval_loss",
        "polite sampled",
    ),
    "Reward model": Line("reward models", specs.reward, PAIRS, RowType.PREFERENCE, "eval_accuracy"),
    "Reward model, LoRA": Line(
        "reward models", partial(specs.reward, weights=ADAPTER), PAIRS, RowType.PREFERENCE, "eval_accuracy"
    ),
    "Reward model, soft labels": Line(
        "reward models",
        specs.reward_soft,
        partial(corpus.voted_pairs, 3000, 10),
        RowType.PREFERENCE,
        "eval_accuracy",
    ),
    "Attribute scores": Line(
        "reward models",
        specs.attribute_reward,
        partial(corpus.scored, 3000, 10),
        RowType.SCORED,
        "eval_pair_accuracy",
    ),
    "Process reward": Line(
        "reward models",
        specs.process_reward,
        partial(corpus.stepwise, 6000, 10),
        RowType.STEPWISE,
        "eval_step_accuracy",
    ),
    "DPO": _pairs(specs.dpo),
    "DPO, LoRA": _pairs(specs.dpo, weights=ADAPTER),
    "IPO": _pairs(specs.ipo),
    "DPO, hinge": _pairs(specs.hinge),
    "DPO, robust": _pairs(specs.robust),
    "DPO, soft labels": Line(
        "offline preference",
        specs.soft_dpo,
        partial(corpus.voted_pairs, 3000, 10),
        RowType.PREFERENCE,
        ACCURACY,
        "polite sampled",
    ),
    "KTO": Line(
        "offline preference",
        specs.kto,
        partial(corpus.thumbs, 3000, 10),
        RowType.UNPAIRED,
        "eval_rewards/margins",
        "polite sampled",
    ),
    "ORPO": _pairs(specs.orpo),
    "SimPO": _pairs(specs.simpo),
    "PPO": _ppo(),
    "PPO, one backbone": _ppo(weights=ADAPTER, value=ValueModel()),
    "GRPO": _sums(specs.grpo),
    "GRPO, LoRA": _sums(specs.grpo, weights=ADAPTER),
    "Dr. GRPO": _sums(specs.dr_grpo),
    "DAPO": _sums(specs.dapo),
    "GSPO": _sums(specs.gspo),
    "RLOO": _sums(specs.rloo),
    "REINFORCE": _sums(specs.reinforce),
    "R1-Zero": _sums(specs.r1_zero),
}


def behavior(folder: Path, judged: Judged, count: int = 200) -> float:
    """The share of *count* held-out prompts that the model in *folder* answers well."""
    torch.set_num_threads(1)
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(networks.load(BASE), str(folder)).merge_and_unload()
    else:
        model = networks.load(folder)
    tokenizer = networks.load_tokenizer(BASE)
    encoder = rows.Encoder(tokenizer, 128)
    what, how = judged.split()
    prompts = [row["prompt"] for row in corpus.prompts(count, 5, share_sums=float(what == "right"))]
    ids = [tokenizer(encoder.render(p, reply=True), add_special_tokens=False)["input_ids"] for p in prompts]
    written = complete(model, tokenizer, ids, max_new_tokens=56, temperature=float(how == "sampled"))
    if what == "right":
        good = [corpus.answer_is_right(p[0]["content"], one.text) for p, one in zip(prompts, written, strict=True)]
    else:
        good = [corpus.is_polite(one.text) for one in written]
    return sum(good) / count


def _place(work: Path, name: str, seed: int) -> Path:
    return work / name.replace(", ", "-").replace(" ", "-").lower() / str(seed)


def carry_out(name: str, seed: int, work: Path) -> dict[str, Any]:
    """One run of one row, or what is known of it from before."""
    folder = _place(work, name, seed)
    known = folder / "result.json"
    if known.exists():
        return dict(json.loads(known.read_text()))
    line = LINES[name]
    folder.mkdir(parents=True, exist_ok=True)
    models = {}
    if line.needs:
        needed = _place(work, line.needs, seed) / "run" / "model"
        adapter = (needed / "adapter_config.json").exists()
        models[2] = ModelFolder(folder=needed, adapter_base=BASE if adapter else None)
    path = write_rows(folder / "rows.parquet", line.data())
    started = time.monotonic()
    attempt = Attempt(
        launch(folder / "run", line.spec(1, 1, seed=seed), path, line.row_type, models=models), fresh=True
    )
    _, status, usage = os.wait4(attempt.process.pid, 0)
    seconds = time.monotonic() - started
    attempt.process.returncode = os.waitstatus_to_exitcode(status)
    assert attempt.process.returncode == 0, attempt.log()
    metrics = attempt.metrics()
    told = [values[line.figure] for _, values in sorted(metrics.items()) if line.figure in values]
    result = {"before": told[0], "after": told[-1], "seconds": seconds, "mib": usage.ru_maxrss / 1024}
    if line.judged:
        result["judged"] = behavior(folder / "run" / "model", line.judged)
    known.write_text(json.dumps(result))
    print(f"{name}, seed {seed}: {json.dumps(result)}", flush=True)
    return result


def table(names: list[str], results: dict[tuple[str, int], dict[str, Any]], base: dict[Judged, float]) -> str:
    """The results as Markdown."""

    def spread(values: list[float]) -> str:
        low, high = min(values), max(values)
        return f"{statistics.mean(values):.3g}" + (f" ({low:.3g} … {high:.3g})" if high > low else "")

    text = [
        "| method | held-out figure | before | after, three seeds | judged apart | seconds | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        line, of = LINES[name], [results[name, seed] for seed in SEEDS if (name, seed) in results]
        if not of:
            continue
        apart = f"{line.judged}: {base[line.judged]:.2f} → {spread([r['judged'] for r in of])}" if line.judged else ""
        text.append(
            f"| {name} | `{line.figure}` | {spread([r['before'] for r in of])} | {spread([r['after'] for r in of])} "
            f"| {apart} | {statistics.mean(r['seconds'] for r in of):.0f} | {max(r['mib'] for r in of):.0f} |"
        )
    return "\n".join(text)


def ensemble(work: Path) -> str:
    """How often the three reward models together prefer the better of 400 held-out completions, each by itself beside it."""
    scorers = [scoring.load_scorer(_place(work, "Reward model", seed) / "run" / "model", field="") for seed in SEEDS]
    encoder = rows.Encoder(scorers[0].tokenizer, 128)
    pairs = corpus.preference_pairs(400, 7, side="held_out")
    texts = {
        side: encoder.pairs([row["prompt"] for row in pairs], [row[side] for row in pairs])
        for side in ("chosen", "rejected")
    }
    said = {side: [[one.score or 0.0 for one in scorer.scores(texts[side])] for scorer in scorers] for side in texts}

    def accuracy(chosen: list[float], rejected: list[float]) -> float:
        return statistics.mean(a > b for a, b in zip(chosen, rejected, strict=True))

    alone = [accuracy(a, b) for a, b in zip(said["chosen"], said["rejected"], strict=True)]
    together = {
        how.kind: accuracy(scoring.agree(said["chosen"], how), scoring.agree(said["rejected"], how))
        for how in (Mean(), Minimum(), Cautious())
    }
    return "Ensemble of the three reward models: " + ", ".join(
        [f"alone {' / '.join(f'{one:.3f}' for one in alone)}", *(f"{how} {one:.3f}" for how, one in together.items())]
    )


def main() -> None:
    """Fill the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="rows of the table; all without")
    parser.add_argument("--work", type=Path, default=Path("/tmp/studio-learning"), help="where results are kept")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    given = parser.parse_args()
    names = given.rows or list(LINES)
    needed = [LINES[name].needs for name in names if LINES[name].needs]
    base = {judged: behavior(BASE, judged) for judged in sorted({LINES[name].judged for name in names} - {""})}
    results: dict[tuple[str, int], dict[str, Any]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for wave in (list(dict.fromkeys(needed)), [name for name in names if name not in needed]):
            asked = [(name, seed) for name in wave for seed in SEEDS[: given.seeds]]
            results |= dict(zip(asked, pool.map(lambda one: carry_out(one[0], one[1], given.work), asked), strict=True))
    print(table(names, results, base), flush=True)
    if all((_place(given.work, "Reward model", seed) / "result.json").exists() for seed in SEEDS):
        print(f"\n{ensemble(given.work)}", flush=True)


if __name__ == "__main__":
    main()
