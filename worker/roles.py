"""The four roles of PPO (policy, reference, value, reward), played by models of their own or on one backbone.

Classically each role is a model. But where only adapters are trained, the frozen weights are the same in all four, and
one copy of them serves: policy and value are adapters that learn, the reward model is a third one that does not, the
reference is what is left with all of them switched off. Both arrangements say exactly the same: reference and rewards
agree with models loaded by themselves (``tests/worker/test_roles.py``), and ``tests/benchmarks/ppo_memory.py`` weighs
them.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from backend.runs.specs import Launch, ModelFolder, PPOSpec, QLoRA, ValueHead, ValueModel
from worker import forward, heads, networks, scoring
from worker.forward import Texts
from worker.report import SpecCannotWork

POLICY = "default"
"""PEFT's own name for a first adapter: what is saved is an ordinary adapter."""
VALUE = "value"
_OF_VALUE = re.compile(rf"\.lora_\w+\.{VALUE}(\.|$)")
_OF_LEARNERS = re.compile(rf"\.lora_\w+\.({POLICY}|{VALUE})(\.|$)")


class Critic(nn.Module):
    """Reads the value V of a text from a hidden state; before it has learned, every value is 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.head = heads.Head(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T) from hidden states (B, T, H), in the head's precision."""
        values: Tensor = self.head(hidden).squeeze(-1)
        return values


class Roles:
    """Who plays what: the part that both arrangements share."""

    policy: Any
    """The language model that learns, with its adapters."""
    critic: Critic

    def __init__(self, policy: Any, value: ValueHead | ValueModel) -> None:
        self.policy = policy
        self.value = value
        self.critic = Critic(policy.config.get_text_config().hidden_size).to(policy.device)
        policy.critic = self.critic  # so that the trainer's optimizer, gradient clip and processes know of it

    def reference(self) -> AbstractContextManager[nn.Module]:
        """The model that the policy must stay near, for the time of the block."""
        raise NotImplementedError

    def _backbone(self) -> AbstractContextManager[nn.Module]:
        """The value's own backbone, for the time of the block."""
        raise NotImplementedError

    def scorers(self) -> Mapping[int, scoring.Scorer]:
        """Reward models that need no loading, by registry id."""
        return {}

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Inside the block the policy is an ordinary language model, to be saved or loaded: the critic is set aside."""
        del self.policy.critic
        try:
            yield
        finally:
            self.policy.critic = self.critic

    def values_own(self) -> list[nn.Parameter]:
        """What only the value learns with."""
        return list(self.critic.parameters())

    def state(self) -> dict[str, Tensor]:
        """What has been learned besides the policy."""
        return {f"critic.{name}": tensor for name, tensor in self.critic.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back :meth:`state`."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def values(self, texts: Texts, hidden: Tensor | None) -> Tensor:
        """V of the text before every completion token: (B, T).

        *hidden* (B, T, H): the policy's own states of the same texts, which a value head reads; a value model reads
        the texts itself.
        """
        match self.value:
            case ValueHead(detached=detached):
                assert hidden is not None
                return self.critic(hidden.detach() if detached else hidden)  # type: ignore[no-any-return]
            case ValueModel():
                with self._backbone() as backbone:
                    return self.critic(forward.states(backbone, texts))  # type: ignore[no-any-return]


class OwnModels(Roles):
    """Each role a model: full weights of policy and value learn, a second copy is the reference."""

    def __init__(
        self, policy: PreTrainedModel, value: ValueHead | ValueModel, load: Callable[[], PreTrainedModel]
    ) -> None:
        super().__init__(policy, value)
        self.second = load().eval().requires_grad_(False)
        if isinstance(value, ValueModel):
            model = load()
            networks.silence_dropout(model)
            self.critic.backbone = model.base_model.to(policy.device)

    def reference(self) -> AbstractContextManager[nn.Module]:
        """A second copy that never learns."""
        return nullcontext(self.second)

    def _backbone(self) -> AbstractContextManager[nn.Module]:
        backbone = self.critic.backbone
        assert isinstance(backbone, nn.Module)
        return nullcontext(backbone)


class OneBackbone(Roles):
    """All roles on the same frozen weights; which adapter is on decides who speaks.

    PEFT makes the adapter that it switches on trainable and freezes the others. Here what learns is decided once, and
    said again after every switch: an adapter that was left frozen would silently learn nothing.
    """

    def __init__(self, policy: Any, value: ValueHead | ValueModel) -> None:
        super().__init__(policy, value)
        if isinstance(value, ValueModel):
            policy.add_adapter(VALUE, copy(policy.peft_config[POLICY]))
        self._judges: dict[int, scoring.Scorer] = {}
        self._learning = {name for name, _ in policy.base_model.named_parameters() if _OF_LEARNERS.search(name)}
        self._on: str | None = POLICY
        self._play(POLICY)
        policy.activation_checkpointing_enable = self.checkpoint_activations  # by this name the trainer asks for it

    def _play(self, adapter: str | None) -> None:
        tuner = self.policy.base_model
        if adapter is None:
            tuner.disable_adapter_layers()
        else:
            if self._on is None:
                tuner.enable_adapter_layers()
            tuner.set_adapter(adapter)
        self._on = adapter
        for name, parameter in tuner.named_parameters():
            parameter.requires_grad_(name in self._learning)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The other roles' adapters stay out of what is saved as well."""
        self.policy.save_pretrained = partial(self.policy.save_pretrained, selected_adapters=[POLICY])
        try:
            with super().plain():
                yield
        finally:
            del self.policy.save_pretrained
            self._play(self._on)  # loading changes what is trainable

    def values_own(self) -> list[nn.Parameter]:
        """The head, and the value's adapter."""
        adapter = [p for name, p in self.policy.base_model.named_parameters() if _OF_VALUE.search(name)]
        return [*super().values_own(), *adapter]

    def state(self) -> dict[str, Tensor]:
        """The head, and the value's adapter."""
        adapter = {
            name: tensor for name, tensor in self.policy.base_model.state_dict().items() if _OF_VALUE.search(name)
        }
        return {**super().state(), **adapter}

    @contextmanager
    def playing(self, adapter: str | None) -> Iterator[Any]:
        """*adapter* speaks inside the block; ``None``: the frozen weights alone."""
        before = self._on
        self._play(adapter)
        try:
            yield self.policy.get_base_model()
        finally:
            self._play(before)

    def reference(self) -> AbstractContextManager[nn.Module]:
        """What is left with all adapters switched off."""
        return self.playing(None)

    @contextmanager
    def _backbone(self) -> Iterator[nn.Module]:
        with self.playing(VALUE) as model:
            yield model.base_model

    def checkpoint_activations(self, **_: Any) -> None:
        """Compute the layers' activations again in the backward pass, under the adapter that was on the first time.

        By itself checkpointing would recompute the value's layers with the policy's adapter, and nothing would say so.
        """

        def first_and_again() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), self.playing(self._on)

        self.policy.get_base_model().activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": first_and_again}
        )
        self.policy.enable_input_require_grads()

    # --- the reward model --------------------------------------------------------------------------------------

    def add_judge(self, number: int, folder: Path) -> None:
        """Let the reward model in *folder*, an adapter of these frozen weights, play on them as *number*."""
        from peft import PeftConfig, set_peft_model_state_dict
        from safetensors.torch import load_file

        adapter = f"judge_{number}"
        networks.check_files(folder, field="rewards")
        config: Any = PeftConfig.from_pretrained(str(folder))
        task, config.task_type, config.modules_to_save = config.task_type, "CAUSAL_LM", None  # its head is ours to call
        self.policy.add_adapter(adapter, config)
        tensors = load_file(folder / "adapter_model.safetensors")
        head = heads.head_in(tensors)
        said = set_peft_model_state_dict(self.policy, tensors, adapter_name=adapter)
        absent = [name for name in said.missing_keys if f".{adapter}." in name]
        if absent or said.unexpected_keys:
            raise SpecCannotWork(
                f"the reward model's adapter does not fit the model: {(absent + said.unexpected_keys)[0]}",
                field="rewards",
            )
        judge = Judge(self, adapter, head, every_token=task == "TOKEN_CLS")
        self._judges[number] = scoring.scorer_of(
            judge,
            head.out_features,
            networks.load_tokenizer(folder, task=task),
            scoring.read_meaning(folder),
            field="rewards",
        )
        self._play(self._on)  # adding an adapter changes what is trainable

    def scorers(self) -> Mapping[int, scoring.Scorer]:
        """The reward models that play on this backbone."""
        return self._judges


class Judge(nn.Module):
    """A reward model without weights of its own but its head: looks like Transformers' classifiers."""

    def __init__(self, roles: OneBackbone, adapter: str, head: heads.Head, *, every_token: bool) -> None:
        super().__init__()
        self._play = partial(roles.playing, adapter)
        self.config = deepcopy(roles.policy.config)  # what pads its texts is its own affair
        self.head = head.to(next(roles.policy.parameters()).device)
        self.every_token = every_token

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        """``logits``: (B, K) at each text's last token, or (B, T, K)."""
        with self._play() as model:
            was_training = model.training
            model.eval()
            hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
            model.train(was_training)
        logits = self.head(hidden)  # (B, T, K)
        if self.every_token:
            return SimpleNamespace(logits=logits)
        places = torch.arange(input_ids.size(1), device=input_ids.device)
        last = (places * (input_ids != self.config.get_text_config().pad_token_id)).argmax(1)  # Transformers' rule
        return SimpleNamespace(logits=logits[torch.arange(len(last), device=last.device), last])


# --- who plays ---------------------------------------------------------------------------------------------------


def cast(launch: Launch, spec: PPOSpec, start: Path) -> Roles:
    """The roles of *spec* on the model in *start*: one backbone for adapters, models of their own for full weights.

    A reward model joins the backbone if it is an adapter of exactly these weights, in the precision it was trained in.
    """
    policy = networks.load_to_train(start, spec.weights)
    if torch.cuda.is_available():
        policy.to("cuda")  # a judge scores before the trainer would move it
    networks.silence_dropout(policy)
    config = networks.lora_config(spec.weights)
    if config is None:
        return OwnModels(policy, spec.value, lambda: networks.load(start))
    from peft import get_peft_model

    shared = OneBackbone(get_peft_model(policy, config), spec.value)
    for number in spec.other_models():
        if _plays_on(launch.models[number], start) and not isinstance(spec.weights, QLoRA):
            shared.add_judge(number, launch.models[number].folder)
    return shared


def _plays_on(model: ModelFolder, start: Path) -> bool:
    return model.adapter_base is not None and model.adapter_base.resolve() == start.resolve()
