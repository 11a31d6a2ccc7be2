"""One backbone must say exactly what models of their own say, and learn exactly what is meant to learn."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from backend.datasets.rows import RowType
from backend.runs.specs import FullWeights, Launch, LoRA, ModelFolder, PPOSpec, ValueHead, ValueModel
from backend.runs.specs.rewards import RewardModelScore, Rewards
from tests.worker.running import BASE
from worker import networks, roles, scoring
from worker.encoding import Pair
from worker.forward import Texts, read

REWARDS = Rewards(components=[RewardModelScore(models=[7])])


def texts(seed: int = 0) -> Texts:
    """Three prompts of 5, 2 and 4 tokens, padded on the left, with completions of 6, 3 and 1, on the right."""
    draw = torch.Generator().manual_seed(seed)
    prompt, completion = torch.tensor([[5], [2], [4]]), torch.tensor([[6], [3], [1]])
    return Texts(
        torch.randint(10, 400, (3, 5), generator=draw),
        (torch.arange(5) >= 5 - prompt).long(),
        torch.randint(10, 400, (3, 6), generator=draw),
        (torch.arange(6) < completion).long(),
    )


def shake(model: torch.nn.Module, mark: str, seed: int = 1) -> None:
    """Random numbers in the weights whose name holds *mark*, as if they had been trained."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if mark in name:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 10


@pytest.fixture(scope="module", params=[False, True], ids=["lora", "dora"])
def reward_adapter(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    weights = LoRA(rank=4, dora=request.param)
    model = get_peft_model(networks.load(BASE, reward=True), networks.lora_config(weights, reward=True))
    shake(model, "lora_B")
    model.save_pretrained(folder)
    networks.load_tokenizer(BASE).save_pretrained(folder)
    return folder


def launched(tmp_path: Path, spec: PPOSpec, reward: Path) -> Launch:
    return Launch(
        spec=spec,
        folder=tmp_path,
        base_model=BASE,
        rows=tmp_path / "rows",
        row_type=RowType.PROMPT_ONLY,
        models={7: ModelFolder(folder=reward, adapter_base=BASE)},
    )


def one_backbone(tmp_path: Path, reward: Path, **more: Any) -> roles.OneBackbone:
    torch.manual_seed(0)
    spec = PPOSpec(base_model=1, dataset=1, rewards=REWARDS, weights=LoRA(rank=4), value=ValueModel(), **more)
    found = roles.cast(launched(tmp_path, spec, reward), spec, BASE)
    assert isinstance(found, roles.OneBackbone)
    shake(found.policy, f"lora_B.{roles.POLICY}", 2)  # else policy, value and reference were the same
    shake(found.policy, f"lora_B.{roles.VALUE}", 3)
    shake(found.critic, "head", 4)
    return found


class TestOneBackbone:
    def test_rewards_equal_those_of_the_model_by_itself(self, tmp_path: Path, reward_adapter: Path) -> None:
        model = networks.folder_of(ModelFolder(folder=reward_adapter, adapter_base=BASE), tmp_path)
        alone = scoring.load_scorer(model)
        judge = one_backbone(tmp_path, reward_adapter).scorers()[7]
        pairs = [Pair([7] * n, list(range(20, 30 + n))) for n in (1, 5, 3)]
        ours = judge.scores(pairs)
        theirs = alone.scores(pairs)
        assert len({verdict.score for verdict in theirs}) == 3
        for mine, expected in zip(ours, theirs, strict=True):
            assert mine.score == pytest.approx(expected.score, abs=1e-6)

    def test_unmerged_they_are_equal_to_the_last_bit(self, tmp_path: Path, reward_adapter: Path) -> None:
        from peft import PeftModel

        alone = PeftModel.from_pretrained(networks.load(BASE, reward=True), str(reward_adapter)).eval()
        ids = torch.randint(10, 400, (3, 9), generator=torch.Generator().manual_seed(0))
        mask = (torch.arange(9) < torch.tensor([[9], [4], [6]])).long()
        ids = torch.where(mask.bool(), ids, alone.config.pad_token_id)
        judge: Any = one_backbone(tmp_path, reward_adapter).scorers()[7]
        with torch.no_grad():
            difference = judge.model(ids, mask).logits - alone(input_ids=ids, attention_mask=mask).logits
        assert difference.abs().max().item() == 0

    def test_a_judge_of_steps_brings_the_bias_of_its_head(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = networks.lora_config(LoRA(rank=4), task="TOKEN_CLS")
        model = get_peft_model(networks.load(BASE, task="TOKEN_CLS", heads=2), config)
        shake(model, "lora_B")
        shake(model, "score.modules_to_save.default.bias")
        reward = tmp_path / "reward"
        model.save_pretrained(reward)
        networks.load_tokenizer(BASE).save_pretrained(reward)
        scoring.write_meaning(scoring.StepsMeaning(separator="\n", reduce="minimum"), reward)
        alone = scoring.load_scorer(networks.folder_of(ModelFolder(folder=reward, adapter_base=BASE), tmp_path))
        pairs = [Pair([7, 8], alone.tokenizer("one\ntwo\nthree")["input_ids"])]
        (mine,), (expected,) = one_backbone(tmp_path, reward).scorers()[7].scores(pairs), alone.scores(pairs)
        assert mine.steps == pytest.approx(expected.steps, abs=1e-5)
        assert len(set(mine.steps)) == 3

    def test_each_judge_finds_the_end_of_a_text_by_its_own_padding(self, tmp_path: Path, reward_adapter: Path) -> None:
        """One was trained where the end token pads: it reads the token before. The policy's config is not theirs to change."""
        other = tmp_path / "padded with the end"
        shutil.copytree(reward_adapter, other)
        tokenizer = networks.load_tokenizer(BASE)
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(other)
        found = one_backbone(tmp_path, reward_adapter)
        before = found.policy.config.pad_token_id
        found.add_judge(8, other)
        pairs = [Pair([7, 8], [9, *end]) for end in ([], [tokenizer.eos_token_id])]
        (open_, ended), (same, blind) = ([v.score for v in found.scorers()[i].scores(pairs)] for i in (7, 8))
        assert open_ != ended
        assert same == blind == pytest.approx(open_, abs=1e-6)
        assert found.policy.config.pad_token_id == before != tokenizer.eos_token_id

    def test_the_reference_equals_the_model_by_itself(self, tmp_path: Path, reward_adapter: Path) -> None:
        found = one_backbone(tmp_path, reward_adapter)
        alone = networks.load(BASE).eval()
        with torch.no_grad(), found.reference() as model:
            assert read(model, texts()).logps.equal(read(alone, texts()).logps)
        with torch.no_grad():
            assert not torch.allclose(read(found.policy, texts()).logps, read(alone, texts()).logps, atol=1e-3)

    def test_policy_and_value_learn_and_nothing_else(self, tmp_path: Path, reward_adapter: Path) -> None:
        """After every role has played: PEFT's switch would have left the value frozen, and thawed the judge."""
        found = one_backbone(tmp_path, reward_adapter)
        before = {name: parameter.requires_grad for name, parameter in found.policy.named_parameters()}
        for name, learns in before.items():
            mine = "lora_" in name and (".default." in name or ".value." in name)
            assert learns == (mine or name.startswith("critic.")), name
        assert sum(before.values()) >= 2 * 2 * 7 * 3  # two adapters, A and B of seven layers in each of three blocks
        policy = read(found.policy, texts())
        with torch.no_grad(), found.reference() as model:
            read(model, texts())
        values = found.values(texts(), None)
        with torch.no_grad():
            found.scorers()[7].scores([Pair([7, 8], [9])])
        assert {name: parameter.requires_grad for name, parameter in found.policy.named_parameters()} == before
        (policy.logps.sum() + values.sum()).backward()
        assert len(before) > sum(before.values()) > 80
        for name, parameter in found.policy.named_parameters():
            touched = parameter.grad is not None and parameter.grad.abs().max() > 0
            assert touched == before[name], name

    def test_each_loss_moves_its_own_adapter(self, tmp_path: Path, reward_adapter: Path) -> None:
        found = one_backbone(tmp_path, reward_adapter)
        found.values(texts(), None).sum().backward()
        moved = {name for name, parameter in found.policy.named_parameters() if parameter.grad is not None}
        assert moved
        assert all(".value." in name or name.startswith("critic.") for name in moved)

    def test_checkpointed_activations_are_computed_again_by_the_adapter_that_made_them(
        self, tmp_path: Path, reward_adapter: Path
    ) -> None:
        """Gradients of policy and value in one backward pass, with and without checkpointing."""

        def gradients(checkpointed: bool) -> dict[str, torch.Tensor]:
            found = one_backbone(tmp_path, reward_adapter)
            found.policy.train()
            if checkpointed:
                found.policy.activation_checkpointing_enable(
                    activation_checkpointing_kwargs=None
                )  # as the trainer does
            loss = read(found.policy, texts(), checkpointed=True).logps.sum() + found.values(texts(), None).sum()
            loss.backward()
            return {name: p.grad for name, p in found.policy.named_parameters() if p.grad is not None}

        plain, again = gradients(False), gradients(True)
        assert plain.keys() == again.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(again[name], gradient, msg=name)

    def test_a_reward_model_of_other_weights_does_not_join(self, tmp_path: Path, reward_adapter: Path) -> None:
        spec = PPOSpec(base_model=1, dataset=1, rewards=REWARDS, weights=LoRA(rank=4))
        launch = launched(tmp_path, spec, reward_adapter)
        other = launch.model_copy(update={"models": {7: ModelFolder(folder=reward_adapter, adapter_base=tmp_path)}})
        assert not roles.cast(other, spec, BASE).scorers()


class TestValues:
    @pytest.mark.parametrize("value", [ValueHead(), ValueHead(detached=True), ValueModel()], ids=repr)
    @pytest.mark.parametrize("weights", [FullWeights(), LoRA(rank=4)], ids=["full", "lora"])
    def test_they_are_read_before_each_token_and_start_at_zero(
        self, tmp_path: Path, weights: Any, value: ValueHead | ValueModel
    ) -> None:
        """V before token t must not change with token t: else the value would know what it is to judge."""
        spec = PPOSpec(base_model=1, dataset=1, rewards=REWARDS, weights=weights, value=value)
        torch.manual_seed(0)
        launch = launched(tmp_path, spec, tmp_path)
        found = roles.cast(launch.model_copy(update={"models": {7: ModelFolder(folder=tmp_path)}}), spec, BASE)
        some = texts()

        def values(these: Texts) -> torch.Tensor:
            head = isinstance(value, ValueHead)
            hidden = read(found.policy, these, hidden=True).hidden if head else None
            return found.values(these, hidden)

        assert values(some).abs().max().item() == 0
        shake(found.critic, "head", 4)
        plain = values(some)
        assert plain.shape == (3, 6)
        changed = some.completion_ids.clone()
        changed[0, 3] = 401
        other = values(Texts(some.prompt_ids, some.prompt_mask, changed, some.completion_mask))
        assert torch.allclose(other[0, :4], plain[0, :4], atol=1e-5)
        assert not torch.allclose(other[0, 4], plain[0, 4], atol=1e-3)
        plain.sum().backward()
        reached = {name for name, p in found.policy.named_parameters() if p.grad is not None}
        outside = {name for name in reached if not name.startswith("critic.")}
        assert "critic.head.weight" in reached
        assert ("critic.backbone.norm.weight" in reached) == (value == ValueModel() and weights == FullWeights())
        if value == ValueHead(detached=True) or (value == ValueModel() and weights == FullWeights()):
            assert not outside
        elif value == ValueModel():
            assert outside
            assert all(".value." in name for name in outside)
        else:
            assert outside
            assert not any(".value." in name for name in outside)


class TestSaving:
    @pytest.mark.parametrize("value", [ValueHead(), ValueModel()], ids=repr)
    @pytest.mark.parametrize("weights", [FullWeights(), LoRA(rank=4)], ids=["full", "lora"])
    def test_the_policy_is_saved_as_a_plain_language_model_and_the_rest_is_kept_apart(
        self, tmp_path: Path, reward_adapter: Path, weights: Any, value: ValueHead | ValueModel
    ) -> None:
        spec = PPOSpec(base_model=1, dataset=1, rewards=REWARDS, weights=weights, value=value)
        torch.manual_seed(0)
        found = roles.cast(launched(tmp_path, spec, reward_adapter), spec, BASE)
        for mark in ("lora_B.default", "lora_B.value", "critic", "layers.0.mlp.up_proj.weight"):
            shake(found.policy, mark)
        with found.plain():
            found.policy.save_pretrained(tmp_path / "saved")
        file = "model" if weights == FullWeights() else "adapter_model"
        assert sorted(path.name for path in (tmp_path / "saved").rglob("*.safetensors")) == [f"{file}.safetensors"]
        saved = load_file(tmp_path / "saved" / f"{file}.safetensors")
        assert saved
        assert not any("critic" in name or "value" in name.split(".") or "judge" in name for name in saved)
        if weights == FullWeights():
            alone = networks.load(tmp_path / "saved").eval()
            torch.testing.assert_close(read(alone, texts()).logps, read(found.policy, texts()).logps)
        values = found.values(texts(), read(found.policy, texts(), hidden=True).hidden)
        kept = {name: tensor.clone() for name, tensor in found.state().items()}
        for name in kept:
            shake(found.policy, name.removeprefix("model."), 9)
        found.load_state(kept)
        again = found.values(texts(), read(found.policy, texts(), hidden=True).hidden)
        assert again.equal(values)
        assert values.abs().max() > 0
