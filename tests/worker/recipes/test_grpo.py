"""GRPO and its repairs: what is learned from which completions, against TRL and by hand; whole runs, broken and not."""

import inspect
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from safetensors.torch import load_file
from transformers import Trainer
from trl import GRPOTrainer

from backend.datasets.rows import RowType
from backend.demo import corpus
from backend.runs.specs import (
    AdaptiveBeta,
    BatchBaseline,
    Checkpoints,
    DataParallel,
    Evaluation,
    FixedBeta,
    GroupAdvantage,
    GRPOSpec,
    KLPenalty,
    Launch,
    LeaveOneOut,
    LoRA,
    Optimization,
    Resample,
    Sampling,
    ScoreCare,
)
from backend.runs.specs.rewards import LengthTerm, NumericAnswer, PatternFormat, Rewards
from tests.worker.running import BASE, Attempt, launch, run, write_rows
from worker import encoding, networks, online, rows
from worker.experience import Batch, Experience, Order, divide, texts_of
from worker.forward import Texts
from worker.recipes.grpo import GRPO
from worker.report import SpecCannotWork
from worker.rewards import Composition, Measured, Rollout

RIGHT = Rewards(components=[NumericAnswer(name="right")])


def grpo(steps: int = 4, **more: Any) -> GRPOSpec:
    """A small run: 16 completions of 4 prompts a step."""
    how: dict[str, Any] = {
        "base_model": 1,
        "dataset": 1,
        "max_length": 80,
        "seed": 3,
        "optimization": Optimization(steps=steps, batch_size=16, learning_rate=3e-4, schedule="constant"),
        "evaluation": Evaluation(every_steps=5, max_rows=16, completions=2),
        "checkpoints": Checkpoints(every_steps=3, keep=9),
        "rewards": RIGHT,
        "sampling": Sampling(max_new_tokens=40),
        "group_size": 4,
    }
    return GRPOSpec(**{**how, **more})


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "sums.parquet", corpus.sums(200, 0))


def trainer_of(launch: Launch) -> GRPO:
    """As the recipe makes it, ready for a rollout."""
    spec = launch.spec
    assert isinstance(spec, GRPOSpec)
    tokenizer = networks.load_tokenizer(BASE)
    prepared = rows.prompts(launch, tokenizer, spec.columns())
    trainer = GRPO(
        launch,
        prepared,
        Composition(spec.rewards, launch, max_new_tokens=spec.sampling.max_new_tokens),
        networks.load(BASE),
        tokenizer,
        config=online.arguments(launch, prepared, group_size=spec.group_size),
        reference=networks.load(BASE),
        adapter=None,
    )
    trainer.launch = launch
    trainer.stop = type("Never", (), {"requested": False})()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.fixture(scope="module")
def make(sums: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer for a changed spec; one that differs only in what is looked up later is an old one, made new."""
    made: dict[str, GRPO] = {}
    weights = {name: tensor.clone() for name, tensor in networks.load(BASE).state_dict().items()}

    def trainer(**more: Any) -> GRPO:
        spec = grpo(**more)
        key = repr((spec.optimization, spec.sampling, spec.batches_per_rollout))
        if key not in made:
            made[key] = trainer_of(launch(tmp_path_factory.mktemp("run"), spec, sums, RowType.PROMPT_ONLY))
        old = made[key]
        for name in ("learn_from", "_generate", "_calculate_rewards"):
            old.__dict__.pop(name, None)
        old.rewards.__dict__.pop("measure", None)
        old.model.load_state_dict(weights)
        old.model.zero_grad()
        old._metrics["train"].clear()
        penalty = spec.kl.beta
        old.spec, old.kl_beta, old.beta = spec, getattr(penalty, "beta", 0.05), 0.0
        return old

    return trainer


def scored(trainer: GRPO, scores: list[float | None]) -> None:
    """From now on completions get *scores*, in turn."""
    stream = iter(scores)

    def measure(rollouts: Sequence[Rollout], **_: Any) -> Measured:
        return Measured([one.group for one in rollouts], {"right": [next(stream) for _ in rollouts]})

    trainer.rewards.__dict__["measure"] = measure


def rolled(trainer: GRPO) -> Batch:
    """One rollout on the first four prompts, undivided."""
    (batch,) = trainer._roll_out(list(trainer.prompts.select(range(4))))
    return batch


# --- what we stand on --------------------------------------------------------------------------------------------


def test_what_we_override_is_still_there() -> None:
    """A new TRL is read before it is used: these are private, and change without notice."""
    assert trl.__version__ == "1.16.0"
    for owner, name, parameters in [
        (GRPOTrainer, "_prepare_inputs", ["self", "generation_batch"]),
        (GRPOTrainer, "_get_train_sampler", ["self", "dataset"]),
        (GRPOTrainer, "_compute_loss", ["self", "model", "inputs"]),
        (GRPOTrainer, "training_step", ["self", "model", "inputs", "num_items_in_batch"]),
        (Trainer, "_save_rng_state", ["self", "output_dir"]),
        (Trainer, "_load_rng_state", ["self", "checkpoint"]),
        (Trainer, "_save_checkpoint", ["self", "model", "trial"]),
    ]:
        assert list(inspect.signature(getattr(owner, name)).parameters) == parameters, name
    source = inspect.getsource(GRPOTrainer)
    for used in ("self._buffered_inputs[self._step % self.args.steps_per_generation]", "self._step += 1"):
        assert used in source
    loop = inspect.getsource(Trainer._run_epoch)
    assert loop.index("self._load_rng_state(resume_from_checkpoint)") < loop.index("self.training_step(")


# --- the loss ----------------------------------------------------------------------------------------------------


class TestLoss:
    @pytest.mark.parametrize("ratio", ["token", "sequence"])
    @pytest.mark.parametrize(("over", "theirs"), [("token", "dapo"), ("completion", "grpo"), ("constant", "dr_grpo")])
    @pytest.mark.parametrize("beta", [0.0, 0.3])
    def test_it_is_trls(self, make: Any, ratio: Any, over: Any, theirs: str, beta: float) -> None:
        """On a policy that has moved away from the one that wrote: value and every gradient."""
        trainer = make(
            ratio=ratio,
            average=over,
            kl=KLPenalty(beta=FixedBeta(beta=beta), place="loss", estimator="k3"),
            batches_per_rollout=2,
        )
        parts = trainer._roll_out(list(trainer.prompts.select(range(8))))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        ours = self.gradients(trainer, lambda: trainer._compute_loss(trainer.model, parts[0]))
        assert trainer._metrics["train"]["clip_ratio/region_mean"][-1] > 0  # the clip had something to do
        trainer.loss_type, trainer.importance_sampling_level, trainer.beta = theirs, ratio, beta
        trainer.epsilon_low, trainer.epsilon_high = 0.2, 0.28
        trainer.args.use_bias_correction_kl = False
        whole = sum(int(part["counts"].sum()) for part in parts)
        inputs = parts[0] | {
            "old_per_token_logps": parts[0]["old_logps"],
            "ref_per_token_logps": parts[0]["ref_logps"],
            "num_items_in_batch": torch.tensor(float(whole)),
        }
        expected = self.gradients(trainer, lambda: GRPOTrainer._compute_loss(trainer, trainer.model, inputs))
        assert ours[0] == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
        assert len(ours[1]) == len(expected[1])
        scale = max(float(gradient.abs().max()) for gradient in expected[1])
        for mine, other in zip(ours[1], expected[1], strict=True):
            assert (mine - other).abs().max() < 1e-4 * scale

    @staticmethod
    def gradients(trainer: GRPO, loss_of: Any) -> tuple[float, list[torch.Tensor]]:
        trainer.model.zero_grad()
        loss = loss_of()
        torch.autograd.backward(loss)
        return loss.item(), [parameter.grad.clone() for parameter in trainer.model.parameters()]

    def test_parts_of_a_step_add_up_to_the_whole(self, make: Any) -> None:
        """Accumulated over four passes or in one, with completions that do not count: the same loss and gradient."""
        values: list[float | None] = [1, 0, None, 1, 0, 0, 0, 0, None, None, None, None, 1, 1, 1, 0]
        told = []
        for size in (16, 4):
            steps = Optimization(steps=1, batch_size=size, accumulation=16 // size, learning_rate=1e-4)
            trainer = make(optimization=steps, drop_unfinished=True)
            scored(trainer, values)
            parts = trainer._roll_out(list(trainer.prompts.select(range(4))))
            assert len(parts) == 16 // size
            told.append(
                self.gradients(trainer, lambda t=trainer, p=parts: sum(t._compute_loss(t.model, part) for part in p))
            )
        assert told[0][0] == pytest.approx(told[1][0], rel=1e-4)
        for one, other in zip(told[0][1], told[1][1], strict=True):
            assert (one - other).abs().max() < 1e-4 * max(float(one.abs().max()), 1e-3)


# --- advantages --------------------------------------------------------------------------------------------------


class TestAdvantages:
    """Two groups of four: rewards 1, 0, 0, 1 and 1, 1, 1, 0."""

    SCORES = [1.0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1, 0]

    @pytest.mark.parametrize(
        ("advantage", "first", "last"),
        [
            # within the first group: mean 1/2, deviation √(4·¼/3) = 0.57735; the last: mean 3/4, deviation ½
            (GroupAdvantage(), 0.5 / (0.57735 + 1e-4), -0.75 / (0.5 + 1e-4)),
            (GroupAdvantage(scale="none"), 0.5, -0.75),
            # of all 16: mean 10/16, Σ(r − mean)² = 3.75, deviation √(3.75/15) = ½
            (GroupAdvantage(scale="batch"), 0.5 / (0.5 + 1e-4), -0.75 / (0.5 + 1e-4)),
            (BatchBaseline(), 0.375 / (0.5 + 1e-4), -0.625 / (0.5 + 1e-4)),
            (LeaveOneOut(), 1 - 1 / 3, 0 - 3 / 3),
        ],
    )
    def test_by_hand(self, make: Any, advantage: Any, first: float, last: float) -> None:
        trainer = make(advantage=advantage)
        scored(trainer, list(self.SCORES))
        told = rolled(trainer)["advantages"]
        assert told[0].item() == pytest.approx(first, rel=1e-4)
        assert told[-1].item() == pytest.approx(last, rel=1e-4)

    @pytest.mark.parametrize("scale", ["group", "batch", "none"])
    def test_trl_gives_the_same(self, make: Any, scale: Any) -> None:
        """Its whole rollout, with our completions and scores; some completions unscored."""
        values: list[float | None] = [1, 0, None, 1, 0.5, 0.5, 0.5, 0.5, 2, -1, 0, 3, None, None, 1, 0]
        trainer = make(advantage=GroupAdvantage(scale=scale))
        scored(trainer, values)
        ours = rolled(trainer)
        asked = [row for row in trainer.prompts.select(range(4)) for _ in range(4)]
        ids = [
            row[mask.bool()].tolist() for row, mask in zip(ours["completion_ids"], ours["completion_mask"], strict=True)
        ]
        texts = [[{"role": "assistant", "content": ""}]] * 16
        trainer._generate = lambda _: ([row["prompt_ids"] for row in asked], ids, None, texts, None, {}, None, [])
        told = torch.tensor([[float("nan") if value is None else value] for value in values])
        trainer._calculate_rewards = lambda *_: told
        trainer.scale_rewards = scale
        theirs = trainer._generate_and_score_completions(asked)
        assert ours["advantages"].squeeze(1) == pytest.approx(theirs["advantages"], abs=1e-5)
        assert ours["completion_ids"].equal(theirs["completion_ids"])
        assert ours["prompt_ids"].equal(theirs["prompt_ids"])

    def test_divergence_in_the_reward_is_paid_per_completion(self, make: Any) -> None:
        """r − β·Σ(log π − log π_ref), before anything is compared."""
        trainer = make(kl=KLPenalty(beta=FixedBeta(beta=0.5), place="reward"), advantage=GroupAdvantage(scale="none"))
        mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
        told = trainer.learn_from(
            Experience(
                texts=Texts(mask, mask, mask, mask),
                counts=mask,
                scores=torch.tensor([1.0, 0.0, 0.0, 0.0]),
                ended=torch.ones(4, dtype=torch.bool),
                old_logps=torch.tensor([[-1.0, -1, 7], [-1, -1, -1], [-1, 7, 7], [-1, -1, -1]]),
                ref_logps=torch.tensor([[-2.0, -2, 9], [-1, -1, -1], [-1, 9, 9], [-3, -1, -1]]),
            )
        )
        # worth: 1 − ½·2 = 0, 0, 0, −½·2 = −1; mean −¼
        assert told["advantages"].squeeze(1).tolist() == [0.25, 0.25, 0.25, -0.75]


class TestWhatCounts:
    def test_an_unscored_completion_is_not_a_zero(self, make: Any) -> None:
        """Of 1, nothing, 0, 1 the mean is 2/3 and the deviation √(2/3 / 2) = 0.57735; the second leaves the loss."""
        trainer = make()
        values: list[float | None] = [1, None, 0, 1, *[0.0] * 12]
        scored(trainer, values)
        batch = rolled(trainer)
        told = batch["advantages"][:4, 0].tolist()
        assert told == pytest.approx([1 / 3 / 0.57745, 0, -2 / 3 / 0.57745, 1 / 3 / 0.57745], rel=1e-4)
        assert batch["counts"].sum(1).bool().tolist() == [True, False, *[True] * 14]
        assert batch["total_tokens"] == batch["completion_mask"].sum() - batch["completion_mask"][1].sum()
        assert batch["total_completions"] == 15
        said = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        assert said["unscored"] == pytest.approx(1 / 16)
        assert said["reward"] == pytest.approx(2 / 15)
        assert said["rewards/right/mean"] == pytest.approx(2 / 15)
        assert said["frac_reward_zero_std"] == 0.75

    def test_if_nothing_is_scored_nothing_is_learned(self, make: Any) -> None:
        trainer = make()
        scored(trainer, [None] * 16)
        loss = trainer._compute_loss(trainer.model, rolled(trainer))
        torch.autograd.backward(loss)
        assert loss.item() == 0
        assert all(not parameter.grad.any() for parameter in trainer.model.parameters())

    def test_unfinished_completions_leave_the_loss(self, make: Any) -> None:
        trainer = make(drop_unfinished=True, sampling=Sampling(max_new_tokens=12))
        batch = rolled(trainer)
        ended = batch["completion_ids"].eq(trainer._tokenizer.eos_token_id).any(1)
        assert 0 < ended.sum() < 16
        assert batch["counts"].sum(1).bool().equal(ended)
        assert batch["total_completions"] == ended.sum()

    def test_scores_are_cut_before_the_missing_end_is_paid(self, make: Any) -> None:
        trainer = make(scores=ScoreCare(clip=0.5, missing_end_penalty=1), sampling=Sampling(max_new_tokens=12))
        scored(trainer, [3.0, -3.0] * 8)
        seen: list[Experience] = []
        learn_from: Callable[[Experience], Batch] = trainer.learn_from

        def watch(experience: Experience) -> Batch:
            seen.append(experience)
            return learn_from(experience)

        trainer.__dict__["learn_from"] = watch
        rolled(trainer)
        missing = (~seen[0].ended).float()
        assert seen[0].scores.equal(torch.tensor([0.5, -0.5] * 8) - missing)


class TestDynamicSampling:
    def test_groups_without_spread_are_replaced_or_leave(self, make: Any) -> None:
        """The 2nd and 3rd group are flat; of their replacements one has spread; its successor in round 3 is flat too."""
        trainer = make(groups=Resample(max_rounds=3), advantage=GroupAdvantage(scale="none"))
        flat, alive = [1.0, 1, 1, 1], [1.0, 0, 0, 0]
        scored(trainer, [*alive, *flat, *flat, *alive, *alive, *flat, None, None, 0.0, 0.0])
        first = list(trainer.prompts.select(range(4)))
        (batch,) = trainer._roll_out(first)
        said = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        assert said["sampling/rounds"] == 3
        assert said["sampling/sampled"] == (4 + 2 + 1) / 4
        assert said["sampling/dead_groups"] == 0.25
        counted = batch["counts"].sum(1).bool().view(4, 4)
        assert counted.all(1).tolist() == [True, True, False, True]
        assert not counted[2].any()
        assert batch["total_completions"] == 12
        prompts = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)
        ]
        kept = [prompts[4 * group] == list(first[group]["prompt_ids"]) for group in range(4)]
        assert kept == [True, False, False, True]
        assert batch["advantages"].view(4, 4)[:2].tolist() == [[0.75, -0.25, -0.25, -0.25]] * 2

    def test_the_same_prompts_replace_them_again(self, make: Any) -> None:
        trainer = make(groups=Resample(max_rounds=4))
        seen = []
        for _ in range(2):
            scored(trainer, [0.0] * 64)
            seen.append(rolled(trainer))
        for name, tensor in seen[0].items():
            assert tensor.equal(seen[1][name]) or tensor.isnan().any(), name


# --- parts and order ---------------------------------------------------------------------------------------------


def test_what_a_verifier_warns_of_is_in_the_log(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, told = make(), list[Any]()
    monkeypatch.setattr(trainer.rewards, "warnings", lambda: ["The sandbox is odd."])
    monkeypatch.setattr(trainer, "report", SimpleNamespace(say=told.append), raising=False)
    scored(trainer, [1.0])
    trainer.write([trainer.prompts[0]], 1, [0])
    assert [(note.level, note.text) for note in told] == [("warning", "The sandbox is odd.")]


def test_parts_lose_only_their_padding(make: Any) -> None:
    trainer = make()
    whole = rolled(trainer)
    texts = [
        (ids[mask.bool()].tolist())
        for part in divide({k: v for k, v in whole.items() if v.dim()}, 4)
        for ids, mask in zip(texts_of(part).completion_ids, texts_of(part).completion_mask, strict=True)
    ]
    expected = [
        ids[mask.bool()].tolist() for ids, mask in zip(whole["completion_ids"], whole["completion_mask"], strict=True)
    ]
    assert texts == expected


@pytest.mark.parametrize("prompts", [3, 5, 100])
def test_every_prompt_is_asked_once_before_any_is_asked_again(prompts: int) -> None:
    """Four prompts a rollout, even where there are fewer."""
    order = list(Order(prompts, asked=4, rollouts=5, copies=2, repeats=3, seed=1))
    assert len(order) == 4 * 5 * 2 * 3
    rollouts = [order[i * 24 : i * 24 + 8] for i in range(5)]
    for number, rollout in enumerate(rollouts):
        assert order[number * 24 : number * 24 + 24] == rollout * 3
        assert rollout[::2] == rollout[1::2]
    asked = [i for rollout in rollouts for i in rollout[::2]]
    for start in range(0, len(asked) - prompts + 1, prompts):
        assert len(set(asked[start : start + prompts])) == prompts


# --- what cannot work --------------------------------------------------------------------------------------------


class TestBadInput:
    def test_a_template_that_never_ends_a_reply(self, make: Any) -> None:
        trainer = make()
        tokenizer, prompt = trainer._tokenizer, trainer.prompts[0]["prompt"]
        encoding.check_end(tokenizer, trainer.eos_token_ids, prompt)
        encoding.check_end(tokenizer, [7], "plain text has no template")
        with pytest.raises(SpecCannotWork, match="so no completion would ever end"):
            encoding.check_end(tokenizer, [tokenizer.convert_tokens_to_ids("a")], prompt)

    def test_a_model_without_keys_and_values(self, make: Any) -> None:
        trainer = make()
        model = networks.load(BASE)
        model._is_stateful = True
        prepared = rows.prompts(trainer.launch, trainer._tokenizer, trainer.spec.columns())
        with pytest.raises(SpecCannotWork, match="keeps a state instead of keys and values"):
            GRPO(
                trainer.launch,
                prepared,
                trainer.rewards,
                model,
                trainer._tokenizer,
                config=trainer.args,
                reference=None,
                adapter=None,
            )

    @pytest.mark.slow
    def test_answers_that_are_not_there(self, tmp_path: Path) -> None:
        path = write_rows(tmp_path / "rows.parquet", corpus.prompts(50, 0))
        event = run(launched(tmp_path / "run", grpo(), path), expect=78).events()[-1]
        assert event["reason"].startswith("rewards.components[0].column: ")
        assert event["remedy"]

    def test_a_batch_of_broken_groups(self) -> None:
        with pytest.raises(ValueError, match="not whole groups of 3"):
            grpo(group_size=3)


# --- whole runs --------------------------------------------------------------------------------------------------


def launched(folder: Path, spec: GRPOSpec, sums: Path, **more: Any) -> Launch:
    return launch(folder, spec, sums, RowType.PROMPT_ONLY, **more)


def same_story(
    told: dict[int, dict[str, float]], expected: dict[int, dict[str, float]], *, rel: float = 1e-6, abs: float = 1e-9
) -> None:
    """Every number but the clock's."""
    assert told.keys() == expected.keys()
    for step, values in expected.items():
        assert told[step].keys() == values.keys()
        for name in values.keys() - {"step_time"}:
            assert told[step][name] == pytest.approx(values[name], rel=rel, abs=abs), (step, name)


@pytest.mark.slow
class TestRun:
    def test_it_learns_exact_answers(self, sums: Path, tmp_path: Path) -> None:
        """Thirty steps; three seeds of the demo's specs are in ``tests/benchmarks/learning.py``. What is asked is shown."""
        spec = grpo(
            optimization=Optimization(steps=30, batch_size=48, learning_rate=2e-4, schedule="constant", warmup_steps=3),
            evaluation=Evaluation(every_steps=30, held_out=0.3, max_rows=64, completions=3),
            checkpoints=Checkpoints(every_steps=30),
            rewards=Rewards(
                components=[
                    PatternFormat(name="worked", weight=0.2, pattern=r"Ones: .* Tens: .* Answer: \d+\."),
                    NumericAnswer(name="right", only_if="worked"),
                    LengthTerm(target=40, weight=0.1),
                ]
            ),
            group_size=8,
        )
        attempt = run(launched(tmp_path, spec, sums))
        metrics = attempt.metrics()
        assert metrics[30]["eval_reward"] > metrics[0]["eval_reward"] + 0.2
        assert metrics[30]["eval_rewards/right/mean"] > metrics[0]["eval_rewards/right/mean"]
        # the reference is what the run starts from
        assert metrics[0]["eval_kl"] == 0
        assert metrics[1]["kl"] == pytest.approx(0, abs=1e-10)
        assert metrics[30]["eval_kl"] > 1e-3  # and is measured, although it costs nothing
        for step in range(1, 31):
            assert metrics[step]["sampling/logp_difference"] < 1e-4  # sampler and trainer agree
            assert {"loss", "grad_norm", "learning_rate", "num_tokens", "entropy", "reward", "reward_std"} <= set(
                metrics[step]
            )
            assert {"rewards/right/mean", "rewards/right/std", "rewards/right/gated"} <= set(metrics[step])
            assert {"clip_ratio/low_mean", "completions/clipped_ratio", "frac_reward_zero_std"} <= set(metrics[step])
        for event in attempt.events("completions"):
            assert len(event["samples"]) == 3
            for sample in event["samples"]:
                assert set(sample["rewards"]) == {"worked", "right", "length"}
                assert sample["tokens"] <= 40
        assert (tmp_path / "model" / "model.safetensors").exists()

    def test_killed_within_a_rollout_it_goes_on_as_if_nothing_had_happened(self, sums: Path, tmp_path: Path) -> None:
        """Four steps on each rollout, saved after every third: adapter with dropout, dynamic sampling, β that adapts."""
        spec = grpo(
            steps=10,
            optimization=Optimization(steps=10, batch_size=4, accumulation=2, learning_rate=1e-3, warmup_steps=2),
            weights=LoRA(rank=4, dropout=0.2),
            batches_per_rollout=2,
            epochs=2,
            groups=Resample(max_rounds=2),
            kl=KLPenalty(beta=AdaptiveBeta(initial=0.05, target=0.5, horizon=20)),
        )
        whole = run(launched(tmp_path / "whole", spec, sums))
        first = Attempt(launched(tmp_path / "1", spec, sums))
        first.wait_for("checkpoint", 6)
        os.kill(first.process.pid, signal.SIGKILL)
        first.finish()
        checkpoint = first.folder / "checkpoints" / "step-6"
        second = run(launched(tmp_path / "2", spec, sums, resume_from=checkpoint, attempt=2))
        assert second.events("started")[0]["first_step"] == 6
        expected = whole.metrics()
        same_story(second.metrics(), {step: values for step, values in expected.items() if step > 6})
        betas = [values["kl_coefficient"] for values in expected.values() if "kl_coefficient" in values]
        assert len(betas) == 3  # one for each rollout
        assert betas[0] == 0.05
        assert len(set(betas)) > 1
        assert expected[0]["eval_kl"] == 0  # the adapter switched off is the reference
        assert expected[10]["eval_kl"] > 0
        ours = load_file(second.folder / "model" / "adapter_model.safetensors")
        for key, tensor in load_file(whole.folder / "model" / "adapter_model.safetensors").items():
            assert tensor.equal(ours[key]), key
        # continued: the reference is base and adapter together, not what lies under the base's name
        more: dict[str, Any] = {
            "evaluation": Evaluation(every_steps=9, max_rows=8),
            "optimization": Optimization(steps=1, batch_size=8),
        }
        third = run(
            launched(tmp_path / "3", grpo(**more), sums, base_model=whole.folder / "model", adapter_base=BASE)
        ).metrics()
        assert third[0]["eval_kl"] == 0

    def test_a_request_within_a_rollout_is_answered_and_the_rollout_written_again(
        self, sums: Path, tmp_path: Path
    ) -> None:
        """The first step is so long that the policy forgets how to end: then two thousand tokens take half a minute."""
        spec = grpo(
            steps=2,
            max_length=2048,
            sampling=Sampling(max_new_tokens=1900),
            evaluation=Evaluation(every_steps=50, max_rows=1, completions=0),
            checkpoints=Checkpoints(every_steps=50),
            optimization=Optimization(steps=2, batch_size=16, learning_rate=0.3),
        )
        attempt = Attempt(launched(tmp_path / "1", spec, sums))
        attempt.wait_for("metrics", 1)
        time.sleep(1)
        asked = time.monotonic()
        attempt.process.send_signal(signal.SIGUSR1)
        assert attempt.finish(timeout=30) == 0
        assert time.monotonic() - asked < 15
        end = attempt.events()[-1]
        assert (end["kind"], end["outcome"], end["step"]) == ("finished", "stopped", 1)
        assert (attempt.folder / "checkpoints" / "step-1" / "manifest.json").exists()

    def test_two_processes_learn_what_one_learns(self, sums: Path, tmp_path: Path) -> None:
        """Eight completions in each of two processes are the sixteen of one: the same texts, losses and weights."""
        more: dict[str, Any] = {
            "groups": Resample(max_rounds=2),
            "advantage": BatchBaseline(),
            "rewards": Rewards(components=[NumericAnswer(name="right", normalize="batch")]),
        }
        one = run(launched(tmp_path / "one", grpo(**more), sums))
        halves = Optimization(steps=4, batch_size=8, learning_rate=3e-4, schedule="constant")
        two = run(
            launched(tmp_path / "two", grpo(optimization=halves, devices=DataParallel(processes=2), **more), sums)
        )
        same_story(two.metrics(), one.metrics(), rel=2e-3, abs=1e-6)
        ours = load_file(two.folder / "model" / "model.safetensors")
        for key, tensor in load_file(one.folder / "model" / "model.safetensors").items():
            assert (tensor - ours[key]).abs().max() < 1e-4, key
