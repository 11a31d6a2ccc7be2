"""Preference methods beyond plain DPO: that they learn, resume, read every field, and say what cannot work.

Most runs are carried out in this process, which spares the imports; the ones that are killed are processes.
"""

import importlib
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from backend.datasets.rows import Row, RowType
from backend.demo import corpus
from backend.runs.events import EVENT
from backend.runs.specs import (
    FSDP,
    IPO,
    Checkpoints,
    DeepSpeed,
    DPOSpec,
    Evaluation,
    Hinge,
    KTOSpec,
    LoRA,
    Optimization,
    ORPOSpec,
    Robust,
    Sigmoid,
    SimPOSpec,
    TrainingSpec,
)
from tests.worker.running import BASE, Attempt, launch, write_rows
from worker import networks, rows
from worker.recipes import kto, pairs
from worker.report import Report, SpecCannotWork, Stop

STEPS = 10
PAIRS, VOTES, THUMBS = "pairs", "votes", "thumbs"
ADAPTER = LoRA(rank=4, dropout=0.2)


def small(learning_rate: float, **more: Any) -> dict[str, Any]:
    return {
        "base_model": 1,
        "dataset": 1,
        "max_length": 96,
        "seed": 3,
        "optimization": Optimization(steps=STEPS, batch_size=16, learning_rate=learning_rate, warmup_steps=1),
        "evaluation": Evaluation(every_steps=5, held_out=0.2, max_rows=48, completions=1, max_new_tokens=16),
        "checkpoints": Checkpoints(every_steps=4),
        **more,
    }


def brief(steps: int, learning_rate: float) -> dict[str, Any]:
    """Small batches, and no texts."""
    return small(
        learning_rate,
        optimization=Optimization(steps=steps, batch_size=8, learning_rate=learning_rate, schedule="constant"),
        evaluation=Evaluation(every_steps=steps, max_rows=16, completions=0),
    )


class Case(NamedTuple):
    """A spec on the rows it learns from."""

    spec: TrainingSpec
    rows: str
    shows: str = "eval_rewards/accuracies"
    """The held-out figure that rises."""


SOFT = DPOSpec(**small(2e-4), loss=Hinge(), beta=0.5, use_probability=True, reference="before")
CASES: dict[str, Case] = {
    "hinge": Case(DPOSpec(**small(2e-4), loss=Hinge(), beta=0.5), PAIRS),
    "robust_lora": Case(DPOSpec(**small(2e-3, weights=ADAPTER), loss=Robust(), beta=0.5), PAIRS),
    "soft": Case(SOFT, VOTES),
    "kto": Case(KTOSpec(**small(2e-4), beta=1), THUMBS, "eval_rewards/margins"),
    "kto_pairs_lora": Case(KTOSpec(**small(2e-3, weights=ADAPTER), beta=1), PAIRS, "eval_rewards/margins"),
    "orpo_lora": Case(ORPOSpec(**small(5e-3, weights=ADAPTER), odds_weight=1), PAIRS),
    "simpo": Case(SimPOSpec(**small(3e-4), sft_weight=0.5), PAIRS),
}


BY_HAND = ("hinge", "robust_lora")
"""Killed and resumed by hand: their state is what ``soft`` and IPO have (``test_recipes.py``), their loss is another."""


class Here(Attempt):
    """An attempt carried out in this process."""

    def __init__(self, given: Any) -> None:
        self.launch, self.folder = given, given.folder
        (given.folder / "checkpoints").mkdir(parents=True)
        with Report(given.folder / "events.jsonl") as report:
            importlib.import_module(f"worker.recipes.{given.spec.method}").run(given, given.spec, report, Stop())


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As a worker's process has it; sums over two threads differ in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    made = {PAIRS: corpus.preference_pairs, VOTES: corpus.voted_pairs, THUMBS: corpus.thumbs}
    for name, make in made.items():
        write_rows(folder / f"{name}.parquet", make(240, 0))
    return folder


Launched = Callable[..., Any]


@pytest.fixture(scope="module")
def launched(place: Path) -> Launched:
    """A launch of a spec on rows, by their name."""

    def make(folder: Path, spec: TrainingSpec, name: str, **more: Any) -> Any:
        kind = RowType.UNPAIRED if name == THUMBS else RowType.PREFERENCE
        return launch(folder, spec, place / f"{name}.parquet", kind, **more)

    return make


@pytest.fixture(scope="module")
def finished(launched: Launched, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Attempt]:
    runs: dict[str, Attempt] = {}

    def get(name: str) -> Attempt:
        if name not in runs:
            runs[name] = Here(launched(tmp_path_factory.mktemp(name) / "run", CASES[name].spec, CASES[name].rows))
        return runs[name]

    return get


# --- what they do ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_learns_and_says_so(finished: Callable[[str], Attempt], name: str) -> None:
    """Ten steps; three seeds of the demo's own specs are in ``tests/benchmarks/learning.py``."""
    attempt, case = finished(name), CASES[name]
    for line in (attempt.folder / "events.jsonl").read_bytes().splitlines():
        EVENT.validate_json(line)
    metrics = attempt.metrics()
    assert sorted(metrics) == list(range(STEPS + 1))
    assert attempt.events()[-1]["outcome"] == "completed"
    before, after = metrics[0], metrics[STEPS]
    told = {"rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"}
    if case.rows != THUMBS:
        alone = {"eval_length_accuracy", "eval_longer_accuracy", "eval_length_nll", "eval_rewards/accuracies"}
        assert alone <= before.keys()
    told |= {"orpo_lora": {"nll_loss", "log_odds_ratio"}, "simpo": {"nll_loss"}, "kto": {"kl"}}.get(name, set())
    assert {f"eval_{key}" for key in told} <= before.keys()
    assert told | {"loss", "grad_norm", "num_tokens"} <= metrics[STEPS].keys()
    assert after[case.shows] > before[case.shows] + 0.02
    assert after["eval_rewards/margins"] > before["eval_rewards/margins"]
    assert after["eval_loss"] < before["eval_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["soft", "kto_pairs_lora", "orpo_lora", "simpo", *(pytest.param(n, marks=pytest.mark.long) for n in BY_HAND)],
)
def test_killed_and_resumed_it_equals_the_run_without_a_break(
    finished: Callable[[str], Attempt], launched: Launched, tmp_path: Path, name: str
) -> None:
    """kill -9 after step 6; a second attempt goes on from step 4. Numbers agree to 1e-6, weights exactly."""
    whole, case = finished(name), CASES[name]
    first = Attempt(launched(tmp_path / "1", case.spec, case.rows))
    first.wait_for("metrics", 6, timeout=200)
    os.kill(first.process.pid, signal.SIGKILL)
    first.finish()
    checkpoint = first.folder / first.events("checkpoint")[-1]["folder"]
    second = Here(launched(tmp_path / "2", case.spec, case.rows, resume_from=checkpoint, attempt=2))
    step = int(checkpoint.name.removeprefix("step-"))
    assert sorted(second.metrics()) == list(range(step + 1, STEPS + 1))
    told, expected = first.metrics() | second.metrics(), whole.metrics()
    for number in range(STEPS + 1):
        assert told[number] == pytest.approx(expected[number], rel=1e-6, abs=1e-9), number
    for path in (whole.folder / "model").glob("*.safetensors"):
        ours = load_file(second.folder / "model" / path.name)
        for key, tensor in load_file(path).items():
            assert tensor.equal(ours[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, ADAPTER], ids=["full", "lora"])
def test_a_reference_computed_before_is_the_one_beside(launched: Launched, tmp_path: Path, weights: Any) -> None:
    """Step by step to 1e-6, though other rows share the batch in which a row's reference is computed."""
    spec = DPOSpec(**brief(6, 2e-4 if weights is None else 2e-3), loss=Sigmoid(sft_weight=0.1), beta=0.5)
    spec = spec.model_copy(update={} if weights is None else {"weights": weights})
    beside = Here(launched(tmp_path / "1", spec, PAIRS)).metrics()
    before = Here(launched(tmp_path / "2", spec.model_copy(update={"reference": "before"}), PAIRS)).metrics()
    for step in range(1, 7):
        for key in ("loss", "grad_norm", "logps/chosen", "rewards/chosen", "rewards/margins"):
            assert before[step][key] == pytest.approx(beside[step][key], rel=1e-6, abs=2e-6), (step, key)


@pytest.mark.slow
def test_the_reference_is_the_model_the_run_starts_from(launched: Launched, tmp_path: Path) -> None:
    """Started from another folder than the one the model was made in: before the first step no log-ratio differs from 0."""
    other = tmp_path / "other"
    model = networks.load(BASE)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.05)
    model.save_pretrained(other)
    networks.load_tokenizer(BASE).save_pretrained(other)
    untouched = None
    once = brief(1, 1e-4)
    for number, spec in enumerate([DPOSpec(**once, reference="before"), DPOSpec(**once), KTOSpec(**once)]):
        metrics = Here(launched(tmp_path / str(number), spec, PAIRS, base_model=other)).metrics()[0]
        assert metrics["eval_rewards/chosen"] == pytest.approx(0, abs=1e-6)
        assert metrics["eval_rewards/rejected"] == pytest.approx(0, abs=1e-6)
        untouched = untouched or metrics["eval_logps/chosen"]
    base = Here(launched(tmp_path / "base", DPOSpec(**once), PAIRS)).metrics()[0]
    assert base["eval_logps/chosen"] != pytest.approx(untouched, rel=1e-3)


@pytest.mark.slow
def test_passes_that_share_a_step_add_up(launched: Launched, tmp_path: Path) -> None:
    """8 × 2 rows make the step that 16 make: every term of the loss is a mean over pairs. Equal to float rounding."""
    how = Optimization(steps=2, batch_size=16, learning_rate=3e-4)
    whole = SimPOSpec(**small(3e-4, optimization=how), sft_weight=0.5)
    halves = whole.model_copy(
        update={"optimization": Optimization(steps=2, batch_size=8, accumulation=2, learning_rate=3e-4)}
    )
    told = [Here(launched(tmp_path / str(i), spec, PAIRS)).metrics() for i, spec in enumerate((whole, halves))]
    for step in (1, 2):
        for key in ("loss", "grad_norm", "rewards/margins", "nll_loss", "num_tokens"):
            assert told[1][step][key] == pytest.approx(told[0][step][key], rel=1e-5), (step, key)


# --- every field is read -----------------------------------------------------------------------------------------

BRIEF = brief(2, 1e-3)
READ: dict[str, tuple[TrainingSpec, list[dict[str, Any]], str]] = {
    "dpo": (
        DPOSpec(**BRIEF, loss=Sigmoid(), beta=0.5),
        [
            {"beta": 0.4},
            {"loss": IPO()},
            {"loss": Hinge()},
            {"loss": Robust(label_smoothing=0.1)},
            {"loss": Robust(label_smoothing=0.2)},
            {"loss": Sigmoid(label_smoothing=0.1)},
            {"loss": Sigmoid(sft_weight=0.1)},
            {"use_probability": True},
        ],
        VOTES,
    ),
    "soft": (
        DPOSpec(**BRIEF, loss=Sigmoid(), beta=0.5, use_probability=True),
        [
            {"beta": 0.4},
            {"loss": IPO()},
            {"loss": Hinge()},
            {"loss": Robust(label_smoothing=0.2)},
            {"loss": Sigmoid(label_smoothing=0.1, sft_weight=0.1)},
        ],
        VOTES,
    ),
    "kto": (
        KTOSpec(**BRIEF, beta=1),
        [{"beta": 0.5}, {"desirable_weight": 1.2}, {"undesirable_weight": 1.2}, {"seed": 4}],
        THUMBS,
    ),
    "orpo": (ORPOSpec(**BRIEF), [{"odds_weight": 0.2}], PAIRS),
    "simpo": (SimPOSpec(**BRIEF), [{"beta": 3}, {"gamma": 1}, {"sft_weight": 0.1}], PAIRS),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_every_field_changes_the_loss(launched: Launched, tmp_path: Path, name: str) -> None:
    spec, changes, names = READ[name]
    seen: list[float] = []
    for number, change in enumerate([{}, *changes]):
        metrics = Here(launched(tmp_path / str(number), spec.model_copy(update=change), names)).metrics()
        seen.append(metrics[2]["eval_loss"])
        for before in seen[:-1]:
            assert seen[-1] != pytest.approx(before, rel=1e-4), change


# --- rows --------------------------------------------------------------------------------------------------------


def encoder(max_length: int = 96) -> rows.Encoder:
    return rows.Encoder(networks.load_tokenizer(BASE), max_length)


def test_ties_are_left_out_and_what_fewer_prefer_changes_sides() -> None:
    """Of p = 1, 1/2, 1/4 and none, the second goes and the third turns; a method that reads p gets all as they are."""
    given = [
        {**row, "probability": p} for row, p in zip(corpus.preference_pairs(4, 0), (1, 0.5, 0.25, None), strict=True)
    ]
    reads, does_not = encoder(), encoder()
    kept = rows.comparisons(does_not, given)
    every = rows.comparisons(reads, given, use_probability=True)
    assert every["probability"] == [1, 0.5, 0.25, 1]
    assert kept["chosen_ids"] == [every["chosen_ids"][0], every["rejected_ids"][2], every["chosen_ids"][3]]
    assert kept["rejected_ids"] == [every["rejected_ids"][0], every["chosen_ids"][2], every["rejected_ids"][3]]
    assert (does_not.counts["ties"], does_not.counts["turned"]) == (1, 1)
    assert (reads.counts["ties"], reads.counts["turned"]) == (0, 0)


def test_accuracy_asks_decided_pairs_only() -> None:
    """Of five pairs the third is a tie and the last is turned: one of four is right, however they lie in batches."""
    rewards = torch.tensor([1.0, -1.0, 3.0, 0.0, 2.0])
    known = torch.tensor([1.0, 1.0, 0.5, 1.0, 0.25])
    assert pairs.wins(rewards, known).tolist() == [1, 0, 0, 0]

    def told(*batches: list[int], certain: bool = False) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=False),
            _metrics={"eval": found},
            _total_train_tokens=0,
        )
        for batch in batches:
            side = pairs.Side(rewards[batch], torch.ones(len(batch)))
            judged = pairs.Judged(torch.tensor(0.0), rewards[batch], torch.zeros(len(batch)))
            inputs = {} if certain else {"probability": known[batch]}
            pairs.tell(trainer, inputs, pairs.Sides(side, side, torch.tensor(0.0)), judged)
        return found

    for batches in ([0, 1, 2, 3, 4],), ([0, 1, 2], [3, 4]), ([2], [0], [1, 3, 4]):
        found = told(*batches)["rewards/accuracies"]
        assert sum(found) / len(found) == 0.25
    assert "rewards/accuracies" not in told([2])  # nothing but ties: no share
    assert told([0, 1, 2, 3], [4], certain=True)["rewards/accuracies"] == [1, 0, 1, 0, 1]
    assert told([0, 1, 2, 3], [4])["rewards/margins"] == rewards.tolist()  # a number for each, whatever the batches


def test_a_step_weighs_its_pairs_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses 1 2 3 | 6 in passes of three and one: 12/4 = 3, not (2 + 6)/2. With a second process, whose passes hold
    0 0 0 | 4: each gives twice its share of 8 pairs, and the mean of both is 16/8 = 2.
    """

    def step(*passes: list[float], others: int = 0) -> float:
        trainer = object.__new__(pairs.WithoutReference)
        trainer.args = SimpleNamespace(device="cpu")
        trainer.accelerator = SimpleNamespace(
            num_processes=2 if others else 1, gather=lambda count: torch.stack([count, torch.tensor(others)])
        )
        trainer._objective = lambda losses, _: pairs.Judged(losses.logps.mean(), losses.logps, losses.logps)
        given = [{"input_ids": torch.zeros(2 * len(losses), 1), "losses": torch.tensor(losses)} for losses in passes]
        batches, number = trainer.get_batch_samples(iter(given), len(given), torch.device("cpu"))
        return sum(trainer.compute_loss(None, batch, num_items_in_batch=number).item() for batch in batches)

    def passed(_: Any, inputs: dict[str, torch.Tensor]) -> pairs.Sides:
        side = pairs.Side(inputs["losses"], torch.ones_like(inputs["losses"]))
        return pairs.Sides(side, side, torch.tensor(0.0))

    monkeypatch.setattr(pairs, "passed", passed)
    monkeypatch.setattr(pairs, "tell", lambda *_: None)
    assert pairs.WithoutReference.loss_is_scaled_for_ga  # nothing divides it again
    assert step([1.0, 2.0, 3.0], [6.0]) == pytest.approx(3)
    assert step([1.0, 2.0, 3.0], [6.0], others=4) == pytest.approx(2 * 12 / 8)
    assert step([0.0, 0.0, 0.0], [4.0], others=4) == pytest.approx(2 * 4 / 8)


def test_of_two_processes_both_are_told() -> None:
    """In training every pair of both, the last pass of an epoch included; held-out rows are the same in both."""

    def told(training: bool) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=training),
            accelerator=SimpleNamespace(gather=lambda values: torch.cat([values.reshape(-1), values.reshape(-1) + 1])),
            _metrics={"train" if training else "eval": found},
            _total_train_tokens=0,
        )
        side = pairs.Side(torch.tensor([1.0, 2.0]), torch.ones(2))
        inputs = {"attention_mask": torch.ones(4, 3)}
        judged = pairs.Judged(torch.tensor(0.5), side.logps, torch.zeros(2))
        pairs.tell(trainer, inputs, pairs.Sides(side, side, torch.tensor(0.0)), judged)
        return found

    assert told(training=True)["logps/chosen"] == [1, 2, 2, 3]
    assert told(training=True)["num_tokens"] == [12 + 13]
    assert told(training=False)["logps/chosen"] == [1, 2]
    assert told(training=False)["loss"] == [0.5, 0.5]


def test_pairs_become_two_thumbs() -> None:
    """A pair is a thumb up and one down on the same prompt; thumbs are taken as they are, and cut."""
    pair = corpus.preference_pairs(1, 0)[0]
    split = rows.thumbs(encoder(), [pair])
    alone: list[Row] = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
    ]
    assert split["label"] == [True, False]
    assert rows.thumbs(encoder(), alone) == split
    room = len(split["prompt_ids"][0]) + 2
    short = encoder(room)
    assert [len(ids) for ids in rows.thumbs(short, alone)["completion_ids"]] == [2, 2]
    assert short.counts["cut"] == 2
    none = encoder(room - 2)
    assert rows.thumbs(none, alone)["label"] == rows.thumbs(none, [pair])["label"] == []
    assert (none.counts["dropped"], none.counts["cut"]) == (3, 0)  # each is said once
    with pytest.raises(SpecCannotWork, match="no label"):
        rows.thumbs(encoder(), [{**alone[0], "label": None}])


def test_neighbors_answer_another_prompt_and_fit() -> None:
    """Prompts a a b b: y' of the first a is the last row's, of the second a too (not the first a's), and so on.

    Seven tokens at most: prompt a has two, so five of the neighbor's six are left.
    """
    from datasets import Dataset

    made = {
        "prompt_ids": [[1, 1], [1, 1], [2], [2]],
        "completion_ids": [[10], [11], [12], [13] * 6],
        "label": [True, False, True, False],
    }
    near = kto.with_neighbors(Dataset.from_dict(made), 7)["KL_completion_ids"][:]
    assert near == [[13] * 5, [13] * 5, [11], [11]]
    same = kto.with_neighbors(Dataset.from_dict({**made, "prompt_ids": [[1]] * 4}), 7)["KL_completion_ids"][:]
    assert same == [[13] * 6, [10], [11], [12]]


def test_rows_are_shuffled_by_the_seed() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"label": list(range(50))})
    one, again, other = (kto.shuffled(data, seed)["label"][:] for seed in (1, 1, 2))
    assert sorted(one) == list(range(50))
    assert one == again != other


# --- what cannot work, and what is warned of ---------------------------------------------------------------------


def test_unbalanced_thumbs_are_warned_of_with_the_weight_to_use() -> None:
    """10 up, 40 down: λ_D from 40/10 = 4 to 4·4/3 = 5.33. 40 up, 10 down: λ_U from 4/1.33 = 3 to 4. Weighted so: silence."""
    spec = KTOSpec(base_model=1, dataset=1)
    few, many = [True] * 10 + [False] * 40, [True] * 40 + [False] * 10
    assert "desirable_weight from 4.00 to 5.33" in kto.balance(few, spec)[0].text
    assert "undesirable_weight from 3.00 to 4.00" in kto.balance(many, spec)[0].text
    for labels, update in ((few, {"desirable_weight": 4.0}), (few, {"desirable_weight": 5.33})):
        assert kto.balance(labels, spec.model_copy(update=update)) == []
    for weight in (3.0, 4.0):
        assert kto.balance(many, spec.model_copy(update={"undesirable_weight": weight})) == []
    assert kto.balance([True, False] * 5, spec) == []


@pytest.mark.parametrize("label", [True, False], ids=["up", "down"])
def test_thumbs_of_one_kind_are_refused(label: bool) -> None:
    with pytest.raises(SpecCannotWork, match="nothing says what is better") as refused:
        kto.balance([label] * 5, KTOSpec(base_model=1, dataset=1))
    assert refused.value.reason.startswith("dataset: ")
    assert refused.value.remedy


def test_a_row_alone_has_no_neighbor() -> None:
    with pytest.raises(ValidationError, match="batch size of at least 2"):
        KTOSpec(base_model=1, dataset=1, optimization=Optimization(batch_size=1))


def test_a_reference_before_needs_whole_weights() -> None:
    for devices in (FSDP(), DeepSpeed()):
        with pytest.raises(ValidationError, match="choose the reference beside"):
            DPOSpec(base_model=1, dataset=1, reference="before", devices=devices)


def test_probabilities_that_are_not_there_are_asked_for(launched: Launched, tmp_path: Path) -> None:
    spec = DPOSpec(**BRIEF, use_probability=True)
    assert spec.columns() == {"probability": "use_probability"}
    with pytest.raises(SpecCannotWork) as refused:
        Here(launched(tmp_path / "run", spec, PAIRS))
    assert refused.value.reason.startswith("use_probability: ")
    assert refused.value.remedy
    odd = [{**row, "probability": 1.5} for row in corpus.preference_pairs(1, 0)]
    with pytest.raises(SpecCannotWork, match=r"probability is 1\.5"):
        rows.comparisons(encoder(), odd, use_probability=True)
