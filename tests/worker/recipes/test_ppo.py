"""PPO as the worker runs it: what it learns, what it saves, what it does with every field; and a game with a known best."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.datasets.rows import RowType
from backend.demo import corpus
from backend.runs.specs import (
    FSDP,
    AdaptiveBeta,
    Checkpoints,
    Evaluation,
    FixedBeta,
    FullWeights,
    KLPenalty,
    LoRA,
    ModelFolder,
    Optimization,
    PPOSpec,
    Sampling,
    ScoreCare,
    ValueHead,
    ValueModel,
)
from backend.runs.specs.rewards import PatternFormat, RewardModelScore, Rewards
from tests.worker.running import BASE, Attempt, launch, run, write_rows
from worker import networks, online, rows
from worker.experience import Experience, divide, named
from worker.forward import Texts, read
from worker.recipes.ppo import PPO
from worker.report import Stop
from worker.rewards import Composition
from worker.roles import cast

POLITE = Rewards(components=[PatternFormat(pattern="(I am sorry|Thank you|We understand).*", name="opening")])


def spec(steps: int = 10, batch: int = 8, rate: float = 1e-4, **more: Any) -> PPOSpec:
    common: dict[str, Any] = {
        "base_model": 1,
        "dataset": 1,
        "max_length": 96,
        "seed": 3,
        "rewards": POLITE,
        "sampling": Sampling(max_new_tokens=40),
        "optimization": Optimization(
            steps=steps, batch_size=batch, learning_rate=rate, schedule="constant", warmup_steps=2
        ),
        "evaluation": Evaluation(every_steps=steps, max_rows=64, completions=2, max_new_tokens=40),
        "checkpoints": Checkpoints(every_steps=3, keep=9),
    }
    return PPOSpec(**{**common, **more})


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "prompts.parquet"
    return write_rows(path, corpus.prompts(400, 0, side="train", share_sums=0))


@pytest.fixture(scope="module")
def reward_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as an adapter of the base, with random taste."""
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = get_peft_model(networks.load(BASE, reward=True), networks.lora_config(LoRA(rank=4), reward=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    networks.load_tokenizer(BASE).save_pretrained(folder)
    return folder


# --- it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_what_is_rewarded_within_its_divergence(prompts: Path, tmp_path: Path) -> None:
    """Twenty rollouts of 32: three of ten replies begin politely, then most, on prompts that were never sampled."""
    attempt = run(launch(tmp_path / "run", spec(40, 32, 3e-4, epochs=2), prompts, RowType.PROMPT_ONLY))
    metrics = attempt.metrics()
    before, after = metrics[0], metrics[40]
    assert before["eval_reward"] < 0.5
    assert after["eval_reward"] > before["eval_reward"] + 0.3
    assert before["eval_kl"] == pytest.approx(0, abs=1e-6)
    assert 0 < after["eval_kl"] * after["eval_completions/mean_length"] < 10  # nats of a completion
    assert metrics[1]["val/explained_variance"] == pytest.approx(0, abs=1e-4)  # the values are 0 and explain nothing
    assert metrics[1]["policy/approxkl"] == pytest.approx(0, abs=1e-9)
    every_step = {"loss/policy", "loss/value", "policy/clipfrac", "policy/approxkl", "val/clipfrac", "kl", "entropy"}
    rollout = {"objective/kl", "objective/scores", "objective/rlhf_reward", "kl_coefficient", "reward"}
    for step in range(1, 41):
        assert every_step <= set(metrics[step])
        assert (rollout <= set(metrics[step])) == (step % 2 == 1)  # μ = 2: a rollout for every second step
    model = networks.load(attempt.folder / "model")  # as any language model
    assert "critic" not in " ".join(load_file(attempt.folder / "model" / "model.safetensors"))
    assert model.config.architectures == ["LlamaForCausalLM"]
    samples = attempt.events("completions")[-1]["samples"]
    assert set(samples[0]["rewards"]) == {"opening"}


# --- it goes on --------------------------------------------------------------------------------------------------

_RESUMED = {
    "head": {"kl": KLPenalty(beta=AdaptiveBeta(initial=0.1, target=0.01, horizon=100))},
    "one_backbone": {
        "weights": LoRA(rank=4, dropout=0.1),
        "value": ValueModel(),
        "rewards": Rewards(components=[RewardModelScore(models=[2])]),
        "optimization": Optimization(steps=10, batch_size=8, learning_rate=1e-3, schedule="constant"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _RESUMED)
def test_killed_within_a_rollout_and_resumed_it_equals_the_run_without_a_break(
    prompts: Path, reward_adapter: Path, tmp_path: Path, name: str
) -> None:
    """Four steps learn from each rollout, so the checkpoint of step 6 lies in the middle of the second."""
    asked = spec(**_RESUMED[name], epochs=2, batches_per_rollout=2)  # type: ignore[arg-type]
    more = {"models": {2: ModelFolder(folder=reward_adapter, adapter_base=BASE)}}
    whole = run(launch(tmp_path / "whole", asked, prompts, RowType.PROMPT_ONLY, **more))
    first = Attempt(launch(tmp_path / "1", asked, prompts, RowType.PROMPT_ONLY, **more))
    first.wait_for("checkpoint", 6)
    os.kill(first.process.pid, signal.SIGKILL)
    first.finish()
    checkpoint = first.folder / "checkpoints" / "step-6"
    again = launch(tmp_path / "2", asked, prompts, RowType.PROMPT_ONLY, resume_from=checkpoint, attempt=2, **more)
    second = run(again)
    assert second.events("started")[0]["first_step"] == 6
    told, expected = second.metrics(), whole.metrics()
    assert sorted(told) == [7, 8, 9, 10]
    for step, values in told.items():
        values.pop("step_time"), expected[step].pop("step_time")
        assert values == expected[step], step
    if name == "head":
        costs = [expected[step]["kl_coefficient"] for step in (1, 5, 9)]
        assert costs[0] == 0.1
        assert len(set(costs)) == 3  # β moved, and moved the same way
    for path in (whole.folder / "model").glob("*.safetensors"):
        ours = load_file(second.folder / "model" / path.name)
        for key, tensor in load_file(path).items():
            assert tensor.equal(ours[key]), key
    for folder in (whole.folder, second.folder):  # the critic too
        assert (folder / "checkpoints" / "step-9" / "rollout_0.pt").exists()
    critics = [
        torch.load(folder / "checkpoints" / "step-9" / "rollout_0.pt", weights_only=True)["more"]
        for folder in (whole.folder, second.folder)
    ]
    assert critics[0].keys() == critics[1].keys()
    assert any(".value." in key for key in critics[0]) == (name == "one_backbone")
    for key, tensor in critics[0].items():
        assert tensor.equal(critics[1][key]), key
        assert tensor.abs().max() > 0, key
    saved = json.loads((whole.folder / "model" / "manifest.json").read_text())
    assert not any("/" in entry["name"] for entry in saved)  # no other role's adapter


# --- what it does with a rollout ---------------------------------------------------------------------------------


@pytest.fixture
def built(prompts: Path, tmp_path: Path) -> Callable[..., PPO]:
    """A trainer of a spec that differs from the usual one in what is given, before its first step."""

    def build(**more: Any) -> PPO:
        asked = spec(**{"value": ValueHead(), "epochs": 2, **more})
        one = launch(tmp_path, asked, prompts, RowType.PROMPT_ONLY)
        torch.manual_seed(0)
        tokenizer = networks.load_tokenizer(BASE)
        prepared = rows.prompts(one, tokenizer, {})
        roles = cast(one, asked, BASE)
        for index, parameter in enumerate(roles.critic.head.parameters()):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(index), std=0.1)
        composition = Composition(asked.rewards, one, max_new_tokens=asked.sampling.max_new_tokens)
        config = online.arguments(one, prepared, group_size=1)
        return PPO(one, prepared, composition, roles.policy, tokenizer, config=config, roles=roles)

    return build


SCORES = torch.tensor([2.0, -1.0, torch.nan, 0.5])
LENGTHS = torch.tensor([5, 3, 4, 1])


def experience(trainer: PPO) -> Experience:
    """Four completions of 5, 3, 4 and 1 tokens; the third could not be scored. The reference finds all of them odd."""
    draw = torch.Generator().manual_seed(0)
    mask = (torch.arange(5) < LENGTHS[:, None]).long()
    texts = Texts(
        torch.randint(10, 400, (4, 3), generator=draw),
        torch.ones(4, 3, dtype=torch.long),
        torch.randint(10, 400, (4, 5), generator=draw),
        mask,
    )
    old = trainer.remembered(texts)
    ref = old - 0.3 + torch.rand(old.shape, generator=draw)
    counts = mask * (~SCORES.isnan()).long()[:, None]
    return Experience(texts, counts, SCORES, torch.tensor([True, True, True, False]), old, ref)


def step(trainer: PPO) -> dict[str, Any]:
    """What one part of a rollout gives: figures learned from, the loss, and whose weights it pulls."""
    lived = experience(trainer)
    learned = trainer.learn_from(lived)
    assert lived.old_logps is not None
    batch = {
        **named(lived.texts),
        "counts": lived.counts,
        "ref_logps": lived.ref_logps,
        "sampled_logps": lived.old_logps,
        "old_logps": lived.old_logps + torch.linspace(-0.5, 0.5, 5),  # as if the policy had moved since
        **learned,
        "old_values": learned["old_values"] - 0.3,
    }
    part = divide(batch, 1)[0] | {"total_tokens": lived.counts.sum()}
    loss = trainer._compute_loss(trainer.model, part)
    loss.backward()  # type: ignore[no-untyped-call]
    pulled = sum(p.grad.norm().item() for n, p in trainer.model.named_parameters() if p.grad is not None)
    return {
        "loss": round(loss.item(), 6),
        "pulled": round(pulled, 5),
        **{name: learned[name].detach().double().sum().item() for name in ("advantages", "returns")},
    }


@pytest.mark.slow
class TestRollout:
    def test_without_values_a_token_is_worth_what_is_still_to_come(self, built: Callable[..., PPO]) -> None:
        """V = 0, γ = λ = 1: the return is the score minus what this and later tokens pay; unscored rows are 0."""
        trainer = built(gae_lambda=1, whiten_advantages=False)
        torch.nn.init.zeros_(trainer.roles.critic.head.weight)
        torch.nn.init.zeros_(trainer.roles.critic.head.bias)
        lived = experience(trainer)
        found = trainer.learn_from(lived)
        assert lived.old_logps is not None
        paid = 0.05 * (lived.old_logps - lived.ref_logps)  # the default: β = .05, k1, in the reward
        for row, length in enumerate(LENGTHS.tolist()):
            for t in range(5):
                expected = SCORES[row].item() - paid[row, t:length].sum().item() if t < length and row != 2 else 0
                assert found["returns"][row, t].item() == pytest.approx(expected, abs=1e-5)
                assert found["advantages"][row, t].item() == pytest.approx(expected, abs=1e-5)

    def test_what_nobody_could_score_pulls_nothing(self, built: Callable[..., PPO]) -> None:
        """Other tokens in the unscored completion, the same loss and gradient."""
        trainer = built()
        lived = experience(trainer)
        losses = []
        for ids in (lived.texts.completion_ids[2], torch.full((5,), 17)):
            changed = lived.texts.completion_ids.clone()
            changed[2] = ids
            texts = Texts(lived.texts.prompt_ids, lived.texts.prompt_mask, changed, lived.texts.completion_mask)
            old = trainer.remembered(texts)
            again = Experience(texts, lived.counts, SCORES, lived.ended, old, lived.ref_logps)
            batch = {**named(texts), "counts": lived.counts, "ref_logps": lived.ref_logps, "old_logps": old}
            part = divide({**batch, "sampled_logps": old, **trainer.learn_from(again)}, 1)[0]
            loss = trainer._compute_loss(trainer.model, part | {"total_tokens": lived.counts.sum()})
            trainer.model.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append((loss.item(), trainer.model.get_input_embeddings().weight.grad.norm().item()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)

    @pytest.mark.parametrize(
        "changed",
        [
            {"value": ValueHead(detached=True)},
            {"value": ValueModel()},
            {"kl": KLPenalty(beta=FixedBeta(beta=0.5))},
            {"kl": KLPenalty(beta=AdaptiveBeta(initial=0.5))},
            {"kl": KLPenalty(estimator="k3")},
            {"kl": KLPenalty(place="loss", estimator="k2")},
            {"kl": KLPenalty(place="loss", estimator="k3")},
            {"gamma": 0.9},
            {"gae_lambda": 0.5},
            {"clip": 0.05},
            {"value_clip": 0.05},
            {"value_weight": 1},
            {"whiten_rewards": True},
            {"whiten_advantages": False},
        ],
        ids=lambda changed: "-".join(str(value) for value in changed.values()),
    )
    def test_every_field_changes_what_is_learned(self, built: Callable[..., PPO], changed: dict[str, Any]) -> None:
        assert step(built(**changed)) != step(built())

    def test_the_other_fields_reach_the_rollout(self, built: Callable[..., PPO]) -> None:
        trainer = built(
            sampling=Sampling(max_new_tokens=7, temperature=0.5),
            scores=ScoreCare(clip=1, missing_end_penalty=0.5),
            batches_per_rollout=3,
            epochs=4,
        )
        assert (trainer.max_completion_length, trainer.temperature) == (7, 0.5)
        assert (trainer.args.steps_per_generation, trainer.num_iterations, trainer.num_generations) == (3, 4, 1)
        told: Any = type("Scores", (), {"total": SCORES.numpy()})
        cared = trainer.care(told, torch.tensor([True, True, True, False]))
        assert cared[[0, 1, 3]].tolist() == [1, -1, 0]
        assert cared[2].isnan()

    @pytest.mark.parametrize("weights", [FullWeights(), LoRA(rank=4)], ids=["full", "lora"])
    @pytest.mark.parametrize("value", [ValueHead(), ValueModel()], ids=["head", "model"])
    def test_the_value_learns_at_a_rate_of_its_own(self, built: Callable[..., PPO], weights: Any, value: Any) -> None:
        """Everything that learns is in one group, once; the critic's groups at ten times the rate."""
        trainer = built(weights=weights, value=value, value_rate=10)
        groups = trainer.create_optimizer().param_groups
        rates = {id(p): group["lr"] for group in groups for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(rates)
        learning = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert len(rates) == len(learning)
        for name, parameter in learning.items():
            own = name.startswith("critic.") or ".value." in name
            assert rates[id(parameter)] == pytest.approx(1e-3 if own else 1e-4), name

    def test_every_field_is_looked_at_here(self) -> None:
        """Those of all methods are read by the frame; a new field of PPO must be added above."""
        ours = {"value", "kl", "gamma", "gae_lambda", "clip", "value_clip", "value_weight", "whiten_rewards"}
        ours |= {
            "whiten_advantages",
            "value_rate",
            "sampling",
            "scores",
            "batches_per_rollout",
            "epochs",
            "rewards",
            "method",
        }
        shared = {"base_model", "dataset", "weights", "optimization", "evaluation", "checkpoints", "devices"}
        assert set(PPOSpec.model_fields) == ours | shared | {"max_length", "seed"}

    def test_values_come_from_the_same_pass_as_log_probabilities(self, built: Callable[..., PPO]) -> None:
        trainer = built()
        lived = experience(trainer)
        said = read(trainer.model.eval(), lived.texts, hidden=True)
        torch.testing.assert_close(trainer.old_values, trainer.roles.values(lived.texts, said.hidden).detach())
        torch.testing.assert_close(lived.old_logps, said.logps.detach())

    def test_the_sampler_says_what_a_pass_would_say(self, built: Callable[..., PPO]) -> None:
        """In single precision a value model needs no pass of the policy over what it has just written."""
        trainer = built(value=ValueModel(), sampling=Sampling(max_new_tokens=12, temperature=0.7))
        trainer.stop = Stop()
        collected = trainer.collect(list(trainer.prompts.select(range(8))))
        texts, sampled = collected.texts(0, torch.device("cpu")), collected.logps(torch.device("cpu"))
        assert trainer.remembered(texts, sampled) is sampled
        repeated = trainer.remembered(texts) * texts.completion_mask
        torch.testing.assert_close(sampled, repeated, atol=1e-4, rtol=1e-4)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ValidationError, match="no gradient on average"):
        KLPenalty(place="loss", estimator="k1")
    with pytest.raises(ValidationError, match="normalized over the completions of a prompt"):
        spec(rewards=Rewards(components=[PatternFormat(pattern="x", normalize="group")]))
    with pytest.raises(ValidationError, match="whole on each device"):
        spec(devices=FSDP())


# --- a game with a known best ------------------------------------------------------------------------------------

WORDS = ["<pad>", "<eos>", "say", "tell", "a", "b", "c", "d"]
PAYS = {"b": 0.2, "c": 0.5, "d": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kl", "more"),
    [
        (KLPenalty(beta=FixedBeta(beta=0.5)), {}),
        (KLPenalty(beta=FixedBeta(beta=0.5), place="loss", estimator="k2"), {"whiten_advantages": False}),
    ],
    ids=["k1-reward", "k2-loss"],
)
def test_a_model_of_eight_words_finds_the_best_policy(tmp_path: Path, kl: KLPenalty, more: dict[str, Any]) -> None:
    """One word is said, paid by ``PAYS``: the recipe itself must reach π* ∝ π_ref·exp(r/β), to a distance of .02."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    base = LlamaForCausalLM(config)
    torch.nn.init.normal_(base.lm_head.weight, std=0.3)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    path = write_rows(tmp_path / "rows.parquet", [{"prompt": "say"}, {"prompt": "tell"}])
    asked = spec(
        200,
        256,
        2e-2,
        max_length=8,
        kl=kl,
        epochs=2,
        sampling=Sampling(max_new_tokens=1),
        rewards=Rewards(components=[PatternFormat(pattern=w, name=w, weight=pay) for w, pay in PAYS.items()]),
        optimization=Optimization(steps=200, batch_size=256, learning_rate=2e-2),
        checkpoints=Checkpoints(every_steps=200),
        evaluation=Evaluation(every_steps=200, completions=0, max_new_tokens=1),
        **more,
    )
    attempt = run(launch(tmp_path / "run", asked, path, RowType.PROMPT_ONLY, base_model=tmp_path / "base"))
    prompt = rows.prompts(attempt.launch, tokenizer, {}).train[0]["prompt_ids"]

    def policy(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            return networks.load(folder)(torch.tensor([prompt])).logits[0, -1].softmax(-1)

    reward = torch.tensor([PAYS.get(word, 0.0) for word in WORDS])
    reference = policy(tmp_path / "base")
    best = (reference.log() + reward / 0.5).softmax(-1)
    assert (reference - best).abs().sum() / 2 > 0.2
    assert (policy(attempt.folder / "model") - best).abs().sum() / 2 < 0.02
