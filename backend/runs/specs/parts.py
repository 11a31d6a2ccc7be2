"""What every method's spec is made of: what is trained, how, on which devices, what is held out, what is saved."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.runs.specs.refusals import refusal


class Strict(BaseModel):
    """Frozen; a misspelled key is an error with its path, and so is a number that is none or has no end."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


# --- what is trained ---------------------------------------------------------------------------------------------


class FullWeights(Strict):
    """Train every weight."""

    kind: Literal["full"] = "full"


class Adapter(Strict):
    """A low-rank update of the linear layers, the rest frozen: W + (α/r)·BA."""

    rank: int = Field(8, ge=1, le=512)
    """r: the width of the update; memory and capacity grow with it."""
    alpha: float = Field(16, gt=0)
    """α: the update is scaled by α/r."""
    dropout: float = Field(0, ge=0, lt=1)
    """Share of the update's inputs zeroed in training."""


class LoRA(Adapter):
    """Train low-rank updates of the linear layers: W + (α/r)·BA. Hu et al. 2021, arXiv:2106.09685."""

    kind: Literal["lora"] = "lora"
    dora: bool = False
    """Learn length and direction of the weights apart (DoRA). Liu et al. 2024, arXiv:2402.09353."""


class QLoRA(Adapter):
    """LoRA on weights frozen in 4 bits (NF4); needs a GPU. Dettmers et al. 2023, arXiv:2305.14314."""

    kind: Literal["qlora"] = "qlora"
    double_quantization: bool = True
    """Quantize the quantization constants too: saves about 0.4 bits per weight."""


Weights = Annotated[FullWeights | LoRA | QLoRA, Field(discriminator="kind")]


# --- how it is trained -------------------------------------------------------------------------------------------


class Optimization(Strict):
    """AdamW and its schedule. Loshchilov & Hutter 2017, arXiv:1711.05101."""

    steps: int = Field(100, ge=1, le=10_000_000)
    """Optimizer steps to take."""
    batch_size: int = Field(32, ge=1)
    """Rows per device and forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes per optimizer step; the effective batch is batch size × accumulation × devices. DPO, KTO and reward models average over passes, as TRL does; the others weigh all rows of a step alike."""
    learning_rate: float = Field(1e-5, gt=0, le=1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0, ge=0)
    """Decoupled decay of the weights."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of Adam's second moment."""
    max_gradient_norm: float = Field(1, gt=0)
    """Gradients are scaled down to this norm."""


class OneDevice(Strict):
    """One process on one device."""

    kind: Literal["one"] = "one"


class DataParallel(Strict):
    """A copy of the model per process, gradients averaged. Li et al. 2020, arXiv:2006.15704."""

    kind: Literal["data_parallel"] = "data_parallel"
    processes: int = Field(2, ge=2, le=1024)
    """Processes on the machine: one for each GPU, or on the CPU."""


class FSDP(Strict):
    """Weights, gradients and optimizer state spread over GPUs. Zhao et al. 2023, arXiv:2304.11277."""

    kind: Literal["fsdp"] = "fsdp"
    processes: int = Field(2, ge=2, le=1024)
    """GPUs to spread over."""
    offload: bool = False
    """Keep what is not needed at the moment in the machine's memory: slower, and larger models fit."""


class DeepSpeed(Strict):
    """ZeRO: optimizer state (1), gradients (2), weights (3) spread over GPUs. Rajbhandari et al. 2020, arXiv:1910.02054."""

    kind: Literal["deepspeed"] = "deepspeed"
    processes: int = Field(2, ge=2, le=1024)
    """GPUs to spread over."""
    stage: Literal[1, 2, 3] = 2
    """How much is spread."""
    offload: bool = False
    """Keep the optimizer in the machine's memory."""


Devices = Annotated[OneDevice | DataParallel | FSDP | DeepSpeed, Field(discriminator="kind")]


class HeldOut(Strict):
    """Held-out rows: all rows of a prompt stay on one side of the split."""

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of prompts kept for evaluation, drawn by a hash of the prompt."""
    every_steps: int = Field(20, ge=1)
    """Evaluate this often, besides before the first and after the last step."""
    max_rows: int = Field(512, ge=1)
    """At most this many held-out rows are used."""
    completions: int = Field(8, ge=0, le=64)
    """Held-out texts to be read at every evaluation: completions that the model writes; for a reward model, pairs with their scores."""


class Evaluation(HeldOut):
    """Held-out rows: all rows of a prompt stay on one side of the split."""

    max_new_tokens: int = Field(64, ge=1)
    """Longest completion generated at evaluation."""


class Checkpoints(Strict):
    """Saved states from which a run resumes as if nothing had happened."""

    every_steps: int = Field(20, ge=1)
    """Save this often, besides at the end."""
    keep: int = Field(2, ge=1)
    """Older ones are removed."""


class TrainingSpec(Strict):
    """What every training method has in common."""

    base_model: int
    """The model to start from: a base model or any checkpoint in the registry."""
    dataset: int
    """The dataset version to learn from."""
    weights: Weights = Field(default_factory=FullWeights)
    """All weights, or a small adapter."""
    optimization: Optimization = Field(default_factory=Optimization)
    """Optimizer, schedule and batch."""
    evaluation: HeldOut = Field(default_factory=HeldOut)
    """What is held out, and how often it is looked at."""
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    """How often the state is saved."""
    devices: Devices = Field(default_factory=OneDevice)
    """How many devices work on the run, and what each of them holds."""
    max_length: int = Field(1024, ge=8)
    """Longest row in tokens, prompt and completion together; the rest is cut."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seeds shuffling, initialization, dropout and sampling."""

    @model_validator(mode="after")
    def _adapters_are_whole(self) -> Self:
        if isinstance(self.devices, FSDP | DeepSpeed) and isinstance(self.weights, Adapter):
            raise refusal("devices", "adapters are small and stay whole: choose data parallel, or train all weights")
        return self

    def other_models(self) -> list[int]:
        """Registry ids of the models it needs besides ``base_model``, each once."""
        return []

    def columns(self) -> dict[str, str]:
        """Columns that rows must have beyond those of their type, each with the field that asks for it."""
        return {}
