"""Reward models of all kinds: what rows become, what the losses count, what a finished model says, and how runs resume."""

import math
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from backend.datasets.rows import Row, RowType
from backend.demo import corpus
from backend.runs.specs import (
    AttributeRewardSpec,
    Checkpoints,
    Evaluation,
    Launch,
    LoRA,
    ModelFolder,
    Optimization,
    ProcessRewardSpec,
    RewardSpec,
    TrainingSpec,
)
from backend.runs.specs.rewards import Cautious, Mean, Minimum
from tests.worker.running import BASE, Attempt, launch, run, write_rows
from worker import graded, networks, objectives, rows, scoring
from worker.encoding import Encoder, Pair
from worker.objectives import IGNORED
from worker.recipes import attribute_reward, judging, process_reward
from worker.recipes.reward import Pairs, Reward
from worker.report import SpecCannotWork

STEPS = 12


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return networks.load_tokenizer(BASE)


@pytest.fixture
def encoder(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, 128)


def said(speaker: str, text: str) -> list[dict[str, str]]:
    return [{"role": speaker, "content": text}]


# --- losses ------------------------------------------------------------------------------------------------------


def test_attribute_losses_count_only_known_scores() -> None:
    """(1 − 3)² = 4 and (2 − 2)² = 0; the unknown one adds neither loss nor gradient. d(r − s)²/dr = 2(r − s) = −4."""
    outputs = torch.tensor([[1.0, 5.0], [7.0, 2.0]], requires_grad=True)
    targets = torch.tensor([[3.0, math.nan], [math.nan, 2.0]])
    losses = objectives.attribute_losses(outputs, targets)
    assert losses.tolist() == [[4, 0], [0, 0]]
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[-4, 0], [0, 0]]


def test_step_losses_by_hand() -> None:
    """σ(log 3) = ¾: −log ¾ if the step is right, −log ¼ = log 4 if it is wrong; nothing where it is ignored.

    The gradient σ − 1 = −¼ raises the logit of a right step, σ = ¾ lowers that of a wrong one.
    """
    logits = torch.full((1, 3), math.log(3), requires_grad=True)
    losses = objectives.step_losses(logits, torch.tensor([[1, 0, IGNORED]]))
    assert losses[0].tolist() == pytest.approx([math.log(4 / 3), math.log(4), 0])
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-0.25, 0.75, 0])


def soft_loss(tokenizer: Any, folder: Path, probability: float | None, pairs: list[Row]) -> float:
    """The loss of a recipe's trainer on *pairs* with one probability for all; TRL's own without."""
    from trl import RewardConfig

    data = [row if probability is None else row | {"probability": probability} for row in pairs]
    encoded = rows.scored_pairs(Encoder(tokenizer, 128), data, use_margin=True, use_probability=probability is not None)
    torch.manual_seed(1)
    made = Reward(
        networks.load(BASE, task="SEQ_CLS"),
        args=RewardConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            max_length=None,
            center_rewards_coefficient=0.3,
        ),
        data_collator=Pairs(pad_token_id=tokenizer.pad_token_id),
        train_dataset=Dataset.from_dict(encoded),
        processing_class=tokenizer,
    )
    made.model.train()
    batch = made.data_collator([made.train_dataset[i] for i in range(len(pairs))])
    return float(made.compute_loss(made.model, dict(batch)).item())


def test_a_certain_preference_costs_what_trl_says(tokenizer: Any, tmp_path: Path) -> None:
    pairs = corpus.preference_pairs(4, 0)
    trl = soft_loss(tokenizer, tmp_path, None, pairs)
    assert soft_loss(tokenizer, tmp_path, 1.0, pairs) == pytest.approx(trl, rel=1e-6)
    assert soft_loss(tokenizer, tmp_path, 0.7, pairs) != pytest.approx(trl, rel=1e-3)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"], "margin": -row["margin"]} for row in pairs]
    there, back = soft_loss(tokenizer, tmp_path, 0.7, pairs), soft_loss(tokenizer, tmp_path, 0.3, turned)
    assert there == pytest.approx(back, rel=1e-6)


# --- rows --------------------------------------------------------------------------------------------------------


def test_ties_need_probabilities(encoder: Encoder) -> None:
    """A tie is left out and counted, what a minority chose changes sides; with probabilities both are kept as they are."""
    base = {"prompt": said("user", "Hi?"), "chosen": said("assistant", "A"), "rejected": said("assistant", "B")}
    data = [base | {"probability": p} for p in (0.5, 0.25, None, 0.9)]
    certain = rows.scored_pairs(encoder, data)
    assert len(certain["chosen_ids"]) == 3
    assert "probability" not in certain
    assert certain["chosen_ids"][0] == certain["rejected_ids"][1]  # turned
    texts = " ".join(note.text for note in encoder.note())
    assert "1 pairs were left out: neither side is better" in texts
    assert "1 pairs changed sides" in texts
    soft = rows.scored_pairs(encoder, data, use_probability=True)
    assert soft["probability"] == [0.5, 0.25, 1.0, 0.9]
    assert soft["chosen_ids"][0] == soft["chosen_ids"][1]
    with pytest.raises(SpecCannotWork, match="no probability") as error:
        rows.scored_pairs(encoder, [base], use_probability=True)
    assert "use_probability" in error.value.reason
    assert error.value.remedy


def solution(steps: list[str], labels: list[bool]) -> Row:
    return {"prompt": said("user", "Solve it."), "completions": steps, "labels": labels}


def test_a_step_ends_where_it_ends(encoder: Encoder, tokenizer: Any) -> None:
    """A step that holds the separator is as many as a reader sees, and no token reaches into the next."""
    steps = ["one\ntwo", "three\n", "\nfour", " "]
    columns = graded.solutions(encoder, [solution(steps, [True] * 4)], separator="\n", first_error_only=True)
    ids, ends = columns["input_ids"][0], columns["ends"][0]
    starts = [columns["prompt_tokens"][0], *[end + 1 for end in ends[:-1]]]
    parts = [tokenizer.decode(ids[start : end + 1]) for start, end in zip(starts, ends, strict=True)]
    assert parts == ["one\n", "two\n", "three\n", "four\n"]
    assert columns["labels"] == [[1, 1, 1, 1]]
    assert ends[-1] == len(ids) - 1


def test_of_a_wrong_step_the_last_part_is_wrong(encoder: Encoder, tokenizer: Any) -> None:
    """Steps "a", "b|c" (wrong), "d|e" (wrong), "f": what is known of a b c d e f is 1 ? 0 ? 0 1."""
    row = solution(["a", "b|c", "d|e", "f"], [True, False, False, True])
    encode = partial(graded.solutions, encoder, [row], separator="|")
    assert encode(first_error_only=False)["labels"] == [[1, IGNORED, 0, IGNORED, 0, 1]]
    assert encode(first_error_only=True)["labels"] == [[1, IGNORED, 0, IGNORED, IGNORED, IGNORED]]
    assert encoder.counts["parted"] == 2
    assert "2 solutions have steps that hold the separator" in encoder.note()[0].text
    (ends,) = encode(first_error_only=True)["ends"]
    cut = Encoder(tokenizer, ends[1] + 1)  # after "b", of which nobody knows
    assert graded.solutions(cut, [row], separator="|", first_error_only=True)["labels"] == [[1, IGNORED]]
    for steps in (["b|c" * 9], ["", " "]):  # nobody knows of what fits; no step at all
        unknown = solution(steps, [False] * len(steps))
        assert graded.solutions(cut, [unknown], separator="|", first_error_only=True)["labels"] == []
    assert cut.counts["dropped"] == 2


def test_after_the_first_error_nothing_counts(encoder: Encoder) -> None:
    row = solution(["a", "b", "c", "d"], [True, False, True, False])
    encode = partial(graded.solutions, encoder, [row], separator="\n")
    assert encode(first_error_only=True)["labels"] == [[1, 0, IGNORED, IGNORED]]
    assert encode(first_error_only=False)["labels"] == [[1, 0, 1, 0]]
    assert encode(first_error_only=True)["right"] == [0]


def test_a_cut_solution_keeps_whole_steps(tokenizer: Any) -> None:
    row = solution(["first", "second", "x" * 300], [True, True, False])
    short = Encoder(tokenizer, 60)
    columns = graded.solutions(short, [row], separator="\n", first_error_only=True)
    assert columns["labels"] == [[1, 1]]
    assert columns["right"] == [IGNORED]  # what was cut off was wrong, and nobody can read it
    assert (short.counts["cut"], short.counts["undecided"]) == (1, 1)
    assert "cut at 60 tokens before any wrong step" in short.note()[-1].text
    sound = graded.solutions(
        short, [solution(["first", "x" * 300], [True, True])], separator="\n", first_error_only=True
    )
    assert sound["right"] == [IGNORED]  # nor can that it was right
    seen = Encoder(tokenizer, 60)
    wrong = graded.solutions(
        seen, [solution(["first", "second", "x" * 300], [True, False, False])], separator="\n", first_error_only=True
    )
    assert wrong["right"] == [0]
    assert (seen.counts["cut"], seen.counts["undecided"]) == (1, 0)
    tiny = Encoder(tokenizer, 8)
    assert graded.solutions(tiny, [row], separator="\n", first_error_only=True)["labels"] == []
    assert (tiny.counts["dropped"], tiny.counts["cut"]) == (1, 0)  # said once


def test_steps_cannot_end_a_turn(encoder: Encoder, tokenizer: Any) -> None:
    row = solution([f"good{tokenizer.eos_token}"], [True])
    columns = graded.solutions(encoder, [row], separator="\n", first_error_only=True)
    assert tokenizer.eos_token_id not in columns["input_ids"][0][columns["prompt_tokens"][0] :]


def test_scores_that_are_missing(encoder: Encoder) -> None:
    row = {"prompt": said("user", "Hi?"), "completion": said("assistant", "A")}
    data = [row | {"scores": s} for s in ({"a": 1, "b": None}, {"c": 3}, {"a": 2.5, "b": 0})]
    columns = graded.attribute_scores(encoder, data, attributes=["a", "b"])
    assert columns["scores"] == [[1.0, pytest.approx(math.nan, nan_ok=True)], [2.5, 0.0]]
    assert columns["prompt_key"][0] == columns["prompt_key"][1]
    assert encoder.counts["unscored"] == 1


def test_only_texts_with_scores_of_the_same_attributes_are_compared() -> None:
    meaning = scoring.AttributesMeaning(
        attributes={name: scoring.AttributeMeaning(weight=w, offset=0, scale=1) for name, w in (("a", 1), ("b", -1))}
    )
    nan = math.nan
    data = Dataset.from_dict({"prompt_key": [1, 1, 1, 2, 1], "scores": [[1, 0], [2, 0], [5, nan], [9, 9], [2, 1]]})
    first, second = attribute_reward.comparable(data, meaning)
    assert sorted(zip(first, second, strict=True)) == [(0, 1), (1, 4)]  # 0 and 4 have the same reward, 1 − 0 = 2 − 1


# --- scoring -----------------------------------------------------------------------------------------------------


def test_an_ensemble_by_hand() -> None:
    """Members 1, 3 and 2, 2: mean 2 and 2; minimum 1 and 2; population deviation √((1+1)/2) = 1 and 0, so 2 − ½·1."""
    scores = [[1.0, 2.0], [3.0, 2.0]]
    assert scoring.agree(scores, Mean()) == [2, 2]
    assert scoring.agree(scores, Minimum()) == [1, 2]
    assert scoring.agree(scores, Cautious(penalty=0.5)) == [1.5, 2]
    assert scoring.agree([[4.0, -1.0]], Cautious(penalty=3)) == [4, -1]  # alone there is no disagreement


def test_reducing_steps() -> None:
    chances = [0.5, 0.25, 0.8]
    assert scoring.reduce_steps(chances, "minimum") == 0.25
    assert scoring.reduce_steps(chances, "product") == pytest.approx(0.1)
    assert scoring.reduce_steps(chances, "last") == 0.8


def text_pairs(tokenizer: Any, count: int) -> list[Pair]:
    data = corpus.demonstrations(count, 3)
    return Encoder(tokenizer, 128).pairs([row["prompt"] for row in data], [row["completion"] for row in data])


def test_neither_batch_nor_order_nor_padding_changes_a_score(tokenizer: Any) -> None:
    torch.manual_seed(4)
    pairs = text_pairs(tokenizer, 9)
    text = scoring.TextScorer(networks.load(BASE, task="SEQ_CLS"), tokenizer)
    steps = scoring.StepScorer(
        networks.load(BASE, task="TOKEN_CLS", heads=2), tokenizer, scoring.StepsMeaning(separator=".", reduce="product")
    )
    for scorer in (text, steps):
        alone = [scorer.scores([pair])[0] for pair in pairs]
        together = scorer.scores(pairs)
        backwards = scorer.scores(pairs[::-1], batch_size=4)[::-1]
        for one, other, third in zip(alone, together, backwards, strict=True):
            assert one.score is not None
            assert other.score == pytest.approx(one.score, abs=1e-5)
            assert third.score == pytest.approx(one.score, abs=1e-5)
            assert other.steps == pytest.approx(one.steps, abs=1e-5)
    assert len({round(verdict.score or 0, 6) for verdict in text.scores(pairs)}) > 5


def test_padding_on_the_left_reads_the_same_token(tokenizer: Any) -> None:
    torch.manual_seed(4)
    model = networks.load(BASE, task="SEQ_CLS")
    scorer = scoring.TextScorer(model, tokenizer)
    pair = text_pairs(tokenizer, 1)[0]
    ids = [*pair.prompt, *pair.completion]
    padded = torch.tensor([[scorer.pad] * 7 + ids])
    mask = torch.tensor([[0] * 7 + [1] * len(ids)])
    with torch.no_grad():
        left = model.eval()(input_ids=padded, attention_mask=mask).logits[0, 0].item()
    assert left == pytest.approx(scorer.scores([pair])[0].score, abs=1e-5)


def test_what_cannot_be_scored_is_not_zero(tokenizer: Any) -> None:
    text = scoring.TextScorer(networks.load(BASE, task="SEQ_CLS"), tokenizer)
    long = Pair([5] * (text.positions + 1), [6])
    assert [verdict.score is None for verdict in text.scores([long, Pair([5], [6])])] == [True, False]
    meaning = scoring.StepsMeaning(separator=".", reduce="last")
    steps = scoring.StepScorer(networks.load(BASE, task="TOKEN_CLS", heads=2), tokenizer, meaning)
    empty = Pair(text_pairs(tokenizer, 1)[0].prompt, [tokenizer.eos_token_id])
    assert steps.scores([empty]) == [scoring.Verdict(None, {}, [])]


def test_a_completion_is_cut_into_the_steps_that_were_learned(tokenizer: Any, encoder: Encoder) -> None:
    """What the policy writes as one text gets the ids that training gave its steps."""
    row = next(row for row in corpus.stepwise(20, 0) if len(row["completions"]) == 3)
    columns = graded.solutions(encoder, [row], separator=".", first_error_only=True)
    text = ".".join([*row["completions"], ""])
    pair = encoder.pairs([row["prompt"]], [said("assistant", text)])[0]
    meaning = scoring.StepsMeaning(separator=".", reduce="last")
    scorer = scoring.StepScorer(networks.load(BASE, task="TOKEN_CLS", heads=2), tokenizer, meaning)
    assert scorer._encode(pair) == (columns["input_ids"][0], columns["ends"][0])
    first, *others = row["completions"]
    merged = solution([".".join([first, others[0]]), *others[1:]], [True] * len(others)) | {"prompt": row["prompt"]}
    assert (
        scorer._encode(pair)[1] == graded.solutions(encoder, [merged], separator=".", first_error_only=True)["ends"][0]
    )


def test_a_language_model_is_no_scorer() -> None:
    with pytest.raises(SpecCannotWork, match="does not score") as error:
        scoring.load_scorer(BASE, field="rewards.components[0].models")
    assert error.value.reason.startswith("rewards.components[0].models")


# --- runs --------------------------------------------------------------------------------------------------------


def small(**more: Any) -> dict[str, Any]:
    return {
        "base_model": 1,
        "dataset": 1,
        "max_length": 96,
        "seed": 3,
        "optimization": Optimization(steps=STEPS, batch_size=8, learning_rate=1e-3, warmup_steps=2),
        "evaluation": Evaluation(every_steps=6, max_rows=40, completions=4, max_new_tokens=24),
        "checkpoints": Checkpoints(every_steps=4, keep=2),
        **more,
    }


ATTRIBUTES = {"politeness": 1.0, "correctness": 2.0, "detail": 0.5}
SPECS: dict[str, TrainingSpec] = {
    "soft": RewardSpec(**small(), use_probability=True),
    "attributes": AttributeRewardSpec(**small(), attributes=ATTRIBUTES),
    "attributes_lora": AttributeRewardSpec(**small(), attributes=ATTRIBUTES, weights=LoRA(rank=4)),
    "steps": ProcessRewardSpec(**small(), separator="."),
    "steps_lora": ProcessRewardSpec(**small(), separator=".", weights=LoRA(rank=4, dropout=0.1)),
}
EVERYWHERE = {"ece", "temperature", "nll_calibrated", "length_accuracy", "length_correlation", "reliability/accuracy_0"}
TOLD = {
    "soft": {"accuracy", "margin"},
    "attributes": {"mse/detail", "pearson/politeness", "spearman/correctness", "pair_accuracy", "baseline_mse/detail"},
    "steps": {"step_accuracy", "step_base_rate", "first_error_accuracy", "solution_accuracy", "wrong_found"},
}


def annotated(count: int) -> list[Row]:
    """Pairs as three annotators saw them: some agree, some do not, one in five is a tie."""
    chances = (1.0, 2 / 3, 0.5, 1.0, 1 / 3)
    return [row | {"probability": chances[n % 5]} for n, row in enumerate(corpus.preference_pairs(count, 0))]


@pytest.fixture(scope="module")
def launches(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Launch]:
    place = tmp_path_factory.mktemp("rows")
    data = {
        "soft": (write_rows(place / "soft.parquet", annotated(200)), RowType.PREFERENCE),
        "attributes": (write_rows(place / "scored.parquet", corpus.scored(240, 0)), RowType.SCORED),
        "steps": (write_rows(place / "stepwise.parquet", corpus.stepwise(240, 0)), RowType.STEPWISE),
    }

    def make(name: str, folder: Path, spec: TrainingSpec | None = None, **more: Any) -> Launch:
        return launch(folder, spec or SPECS[name], *data[name.split("_")[0]], **more)

    return make


@pytest.fixture(scope="module")
def finished(launches: Callable[..., Launch], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Attempt]:
    runs: dict[str, Attempt] = {}

    def get(name: str) -> Attempt:
        if name not in runs:
            runs[name] = run(launches(name, tmp_path_factory.mktemp(name)))
        return runs[name]

    return get


def evaluated(attempt: Attempt, step: int) -> dict[str, float]:
    values = attempt.metrics()[step]
    return {name.removeprefix("eval_"): value for name, value in values.items() if name.startswith("eval_")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_a_finished_model_says_what_the_run_showed(
    finished: Callable[[str], Attempt], tmp_path: Path, name: str
) -> None:
    """The saved folder alone gives the scores that the last evaluation showed: scale, separator, adapter and all."""
    attempt = finished(name)
    kind = name.split("_")[0]
    before, after = evaluated(attempt, 0), evaluated(attempt, STEPS)
    assert EVERYWHERE | TOLD[kind] <= set(after)
    assert after["loss"] < before["loss"]
    base = BASE if "lora" in name else None
    folder = networks.folder_of(ModelFolder(folder=attempt.folder / "model", adapter_base=base), tmp_path)
    scorer = scoring.load_scorer(folder)
    encoder = Encoder(scorer.tokenizer, 96)
    shown = attempt.events("completions")[-1]["samples"]
    assert len(shown) == 4
    for sample in shown:
        text = sample["completion"] + ("." if kind == "steps" else "")
        verdict = scorer.scores(encoder.pairs([said("user", sample["prompt"])], [said("assistant", text)]))[0]
        said_then = sample["rewards"]
        assert verdict.score == pytest.approx(said_then["score"], abs=1e-4)
        assert verdict.attributes == pytest.approx({n: said_then[n] for n in verdict.attributes}, abs=1e-4)
        assert verdict.steps == pytest.approx([said_then[f"step {n + 1}"] for n in range(len(verdict.steps))], abs=1e-4)
    if kind == "attributes":
        assert set(verdict.attributes) == set(ATTRIBUTES)
        weighted = sum(ATTRIBUTES[n] * value for n, value in verdict.attributes.items())
        assert verdict.score == pytest.approx(weighted, abs=1e-4)


@pytest.mark.slow
def test_scores_are_on_the_rows_own_scale(finished: Callable[[str], Attempt]) -> None:
    """Detail is words / 4, about 2.5 on average: the finished model's raw outputs differ as much as the rows' scores do."""
    folder = finished("attributes").folder / "model"
    meaning = scoring.read_meaning(folder)
    assert isinstance(meaning, scoring.AttributesMeaning)
    assert list(meaning.attributes) == sorted(ATTRIBUTES)
    assert all(one.scale == 1 for one in meaning.attributes.values())
    assert meaning.attributes["detail"].offset == pytest.approx(2.7, abs=0.4)
    checkpoint = scoring.read_meaning(finished("attributes").folder / "checkpoints" / f"step-{STEPS}")
    assert isinstance(checkpoint, scoring.AttributesMeaning)
    deviation = checkpoint.attributes["detail"].scale
    assert deviation > 1.2
    ours = load_file(folder / "model.safetensors")["score.weight"]
    theirs = load_file(finished("attributes").folder / "checkpoints" / f"step-{STEPS}" / "model.safetensors")[
        "score.weight"
    ]
    place = list(meaning.attributes).index("detail")
    assert ours[place].tolist() == pytest.approx((theirs[place] * deviation).tolist(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attributes", "steps_lora"])
def test_killed_and_resumed_it_equals_the_run_without_a_break(
    finished: Callable[[str], Attempt], launches: Callable[..., Launch], tmp_path: Path, name: str
) -> None:
    whole = finished(name)
    first = Attempt(launches(name, tmp_path / "1"))
    first.wait_for("metrics", 6)
    os.kill(first.process.pid, signal.SIGKILL)
    first.finish()
    checkpoint = first.folder / first.events("checkpoint")[-1]["folder"]
    second = run(launches(name, tmp_path / "2", resume_from=checkpoint, attempt=2))
    told, expected = first.metrics() | second.metrics(), whole.metrics()
    for number in range(STEPS + 1):
        assert told[number].keys() == expected[number].keys()
        assert told[number] == pytest.approx(expected[number], rel=1e-6, abs=1e-12, nan_ok=True), number
    for path in (whole.folder / "model").glob("*.safetensors"):
        ours = load_file(second.folder / "model" / path.name)
        for key, tensor in load_file(path).items():
            assert tensor.equal(ours[key]), key


@pytest.mark.slow
def test_passes_of_a_step_weigh_by_what_they_know(
    finished: Callable[[str], Attempt], launches: Callable[..., Launch], tmp_path: Path
) -> None:
    """Two passes of four solutions have different numbers of labels; together they are the step of eight."""
    halves = SPECS["steps"].optimization.model_copy(update={"batch_size": 4, "accumulation": 2})
    told = run(launches("steps", tmp_path, SPECS["steps"].model_copy(update={"optimization": halves}))).metrics()
    expected = finished("steps").metrics()
    for step in (1, 2, 3):
        for name in ("loss", "grad_norm", "num_tokens"):
            assert told[step][name] == pytest.approx(expected[step][name], rel=1e-4), (step, name)


def test_an_attribute_that_no_row_has(launches: Callable[..., Launch], tmp_path: Path) -> None:
    with pytest.raises(SpecCannotWork) as error:
        attribute_reward._check_attributes(launches("attributes", tmp_path), ["detail", "honesty"])
    assert error.value.reason.startswith("attributes: no row has a score of 'honesty'; there are scores of correctness")
    assert error.value.remedy


@pytest.mark.slow
def test_going_on_from_scores_of_the_same_attributes(
    finished: Callable[[str], Attempt], launches: Callable[..., Launch], tmp_path: Path
) -> None:
    """The old head goes on in the new rows' units: before the first step it is as good as it ended."""
    start = finished("attributes").folder / "model"
    once = SPECS["attributes"].optimization.model_copy(update={"steps": 1})
    spec = SPECS["attributes"].model_copy(update={"optimization": once})
    again = run(launches("attributes", tmp_path, spec, base_model=start))
    ended, begins = evaluated(finished("attributes"), STEPS), evaluated(again, 0)
    assert begins["mse/detail"] == pytest.approx(ended["mse/detail"], rel=1e-4)
    others = scoring.AttributesMeaning(attributes={"detail": scoring.AttributeMeaning(weight=1, offset=0, scale=1)})
    with pytest.raises(SpecCannotWork, match="base_model: the model has learned correctness, detail, politeness"):
        attribute_reward._take_over(networks.load(start, task="SEQ_CLS"), start, others)


def test_a_solution_whose_verdict_was_cut_off_is_not_judged() -> None:
    """Scores .9 .9 .2 .9 of solutions that are right, wrong, wrong and cut off: two of three, as "wrong" always says.

    In training up to 2 tokens are right, and the cut-off one, long, says nothing about it: of 1, 3 and 2 tokens that
    are right, wrong and wrong, the limit gets two. Without one whose verdict is known nothing is said.
    """

    def solutions(tokens: list[int], right: list[int]) -> Dataset:
        return Dataset.from_dict(
            {"input_ids": [[0] * n for n in tokens], "prompt_tokens": [0] * len(tokens), "right": right}
        )

    held_out, learned = solutions([1, 3, 2, 9], [1, 0, 0, IGNORED]), solutions([2, 3, 9], [1, 0, IGNORED])
    scores = torch.tensor([0.9, 0.9, 0.2, 0.9])
    assert process_reward.of_solutions(scores, held_out, learned) == {
        "solution_accuracy": pytest.approx(2 / 3),
        "solution_base_rate": pytest.approx(2 / 3),
        "length_accuracy": pytest.approx(2 / 3),
    }
    assert process_reward.of_solutions(scores[3:], held_out.select([3]), learned) == {}


def test_the_first_wrong_step() -> None:
    wrong = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    assert process_reward.first_below(wrong).tolist() == [1, 3, 0]


def test_lengths_are_of_the_completion() -> None:
    data = Dataset.from_dict({"input_ids": [[1, 2, 3], [1, 2]], "prompt_tokens": [2, 1]})
    assert judging.lengths(data).tolist() == [1, 1]
