"""How far the verifiers agree with public data, and how fast they are.

    python -m tests.benchmarks.verifiers FOLDER [--show 5]

FOLDER holds ``gsm8k``, ``math500`` and ``ifeval`` (files as upstream has them). Of GSM8K's model solutions the given
correctness is compared with our verdict; *disagree* counts by what was given and what we say. MATH-500, SVAMP and ASDiv
answers are read, compared with themselves, and with the answer of the next row whose text differs, which should rarely be
equal. IFEval's instructions are read, and an empty text follows none. ``--show`` prints rows of each disagreement.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backend.runs.specs.rewards import Constraints, MathAnswer, NumericAnswer
from worker.report import SpecCannotWork
from worker.rewards.answers import Number
from worker.rewards.constraints import Instructions, asked
from worker.rewards.mathematics import Mathematics
from worker.rewards.rollouts import Rollout, Row, Score, Scorer

MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.open(encoding="utf-8")]


def timed(scorer: Scorer, rollouts: Sequence[Rollout]) -> tuple[list[Score], str]:
    """Scores, and how many a second."""
    start = time.perf_counter()
    scores = scorer.score(rollouts)
    return scores, f"{len(rollouts) / (time.perf_counter() - start):,.0f}/s"


def unreadable(scorer: Scorer, rows: Sequence[Row]) -> str:
    """What the check before a run says of *rows*."""
    try:
        scorer.check(rows, "component")
    except SpecCannotWork as refused:
        return refused.reason
    return f"all {len(rows):,} readable"


def gsm8k(folder: Path, show: int) -> Iterator[str]:
    """Our verdicts on four models' solutions against the given ones."""
    for name in ("train", "test"):
        rows = lines(folder / f"{name}.jsonl")
        yield f"gsm8k {name}: numbers {unreadable(Number(NumericAnswer()), rows)}"
    rows = lines(folder / "example_model_solutions.jsonl")
    solutions = [(row, model) for row in rows for model in MODELS]
    rollouts = [
        Rollout(prompt=row["question"], completion=row[model]["solution"], row={"answer": row["ground_truth"]})
        for row, model in solutions
    ]
    scorers: dict[str, Scorer] = {
        "number, last number": Number(NumericAnswer()),
        "number, after marker": Number(NumericAnswer(answer="after_marker")),
        "math, after marker": Mathematics(MathAnswer(answer="after_marker")),
        "math, whole": Mathematics(MathAnswer()),
    }
    for name, scorer in scorers.items():
        scores, rate = timed(scorer, rollouts)
        agreed: Counter[str] = Counter()
        parted: dict[str, list[str]] = defaultdict(list)
        for (row, model), score in zip(solutions, scores, strict=True):
            given = row[model]["is_correct"]
            if score is not None and bool(score) == given:
                agreed[model] += 1
            else:
                ends = [
                    text.strip().splitlines()[-1] if text.strip() else ""
                    for text in (row["ground_truth"], row[model]["solution"])
                ]
                parted[f"given {given}, ours {score}"].append(f"gold {ends[0]!r}  wrote {ends[1]!r}")
        each = ", ".join(f"{model} {agreed[model]}" for model in MODELS)
        counts = {kind: len(texts) for kind, texts in parted.items()}
        yield f"gsm8k {name}: {agreed.total():,} of {len(rollouts):,} agree ({each}); disagree {counts}; {rate}"
        yield from (f"    {kind}: {text}" for kind, texts in parted.items() for text in texts[:show])
        scorer.close()


def answers(folder: Path, show: int) -> Iterator[str]:
    """Gold answers against themselves and their neighbors."""
    for name, column, kinds in (
        ("math500", "answer", ("math",)),
        ("svamp", "Answer", ("number", "math")),
        ("asdiv", "answer", ("number",)),  # with units in brackets, which no formula has
    ):
        rows = lines(folder / f"{name}.jsonl")
        for kind in kinds:
            scorer: Scorer = (
                Number(NumericAnswer(column=column))
                if kind == "number"
                else Mathematics(MathAnswer(column=column, answer="boxed"))
            )
            golds = [str(row[column]) for row in rows]
            others = [next(gold for gold in golds[i + 1 :] + golds if gold != golds[i]) for i in range(len(golds))]
            own, rate = timed(scorer, [boxed(gold, row) for gold, row in zip(golds, rows, strict=True)])
            other, _ = timed(scorer, [boxed(gold, row) for gold, row in zip(others, rows, strict=True)])
            yield (
                f"{name} {kind}: {unreadable(scorer, rows)}; of {len(rows):,} equal to themselves {own.count(1.0):,} "
                f"(unscored {own.count(None)}), to the next one's {other.count(1.0):,} (unscored {other.count(None)}); {rate}"
            )
            yield from [
                f"    not itself ({score}): {gold}" for gold, score in zip(golds, own, strict=True) if score != 1
            ][:show]
            yield from [
                f"    equal or broken ({score}): {a} | {b}"
                for a, b, score in zip(golds, others, other, strict=True)
                if score != 0
            ][:show]
            scorer.close()
    rows = lines(folder / "math500.jsonl")
    scorer = Mathematics(MathAnswer(answer="whole"))
    scores, rate = timed(scorer, [Rollout(prompt="", completion=row["solution"], row=row) for row in rows])
    yield f"math500 math: {scores.count(1.0)} of {len(rows)} worked solutions right as a whole (unscored {scores.count(None)}); {rate}"
    yield from [
        f"    {row['answer']}: …{row['solution'][-90:]!r}"
        for row, score in zip(rows, scores, strict=True)
        if score != 1
    ][:show]
    scorer.close()


def boxed(gold: str, row: Row) -> Rollout:
    """A completion that says *gold*."""
    return Rollout(prompt="", completion=f"So it is \\boxed{{{gold}}}.", row=row)


def ifeval(folder: Path) -> Iterator[str]:
    """Whether every prompt's instructions are known."""
    rows = lines(folder / "input_data.jsonl")
    scorer = Instructions(Constraints(column="instruction_id_list", all_or_nothing=False))
    ids = Counter(one.name for row in rows for one in asked(row, "instruction_id_list"))
    empty = scorer.score([Rollout(prompt=row["prompt"], completion="", row=row) for row in rows])
    scores, rate = timed(scorer, [Rollout(prompt=row["prompt"], completion=row["prompt"], row=row) for row in rows])
    known = [score for score in scores if score is not None]
    yield (
        f"ifeval: {unreadable(scorer, rows)}; {len(ids)} instructions {ids.total()} times; an empty text follows "
        f"{sum(score or 0 for score in empty):g}; the prompt itself, as an answer, {sum(known) / len(known):.1%}; {rate}"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", type=int, default=0, help="rows of each disagreement")
    given = parser.parse_args()
    for part in (
        gsm8k(given.folder / "gsm8k", given.show),
        answers(given.folder / "math500", given.show),
        ifeval(given.folder / "ifeval"),
    ):
        for line in part:
            print(line, flush=True)


if __name__ == "__main__":
    main()
