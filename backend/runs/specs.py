"""What a run is asked to do: one closed, validated object, the same in the form, the table, Compare and the recipe.

A hyperparameter exists only where it means something, so the variants nest. The sentence under a field is its comment,
its OpenAPI description and the help text of the form. Pydantic only: the worker imports this without the database.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from backend.datasets.rows import RowType


class Strict(BaseModel):
    """Frozen, and a misspelled key is an error with its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# --- what is trained ---------------------------------------------------------------------------------------------


class FullWeights(Strict):
    """Train every weight."""

    kind: Literal["full"] = "full"


class LoRA(Strict):
    """Train low-rank updates of the linear layers: W + (α/r)·BA. Hu et al. 2021, arXiv:2106.09685."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=512)
    """r: the width of the update; memory and capacity grow with it."""
    alpha: float = Field(16, gt=0)
    """α: the update is scaled by α/r."""
    dropout: float = Field(0, ge=0, lt=1)
    """Share of the update's inputs zeroed in training."""


Weights = Annotated[FullWeights | LoRA, Field(discriminator="kind")]


# --- how it is trained -------------------------------------------------------------------------------------------


class Optimization(Strict):
    """AdamW and its schedule. Loshchilov & Hutter 2017, arXiv:1711.05101."""

    steps: int = Field(100, ge=1, le=10_000_000)
    """Optimizer steps to take."""
    batch_size: int = Field(32, ge=1)
    """Rows per device and forward pass."""
    accumulation: int = Field(1, ge=1)
    """Forward passes per optimizer step; the effective batch is batch size × accumulation."""
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


class Evaluation(Strict):
    """Held-out rows: all rows of a prompt stay on one side of the split."""

    held_out: float = Field(0.1, gt=0, lt=1)
    """Share of prompts kept for evaluation, drawn by a hash of the prompt."""
    every_steps: int = Field(20, ge=1)
    """Evaluate this often, besides before the first and after the last step."""
    max_rows: int = Field(512, ge=1)
    """At most this many held-out rows are used."""
    completions: int = Field(8, ge=0, le=64)
    """Held-out texts to be read at every evaluation: completions that the model writes; for a reward model, pairs with their scores."""
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
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    checkpoints: Checkpoints = Field(default_factory=Checkpoints)
    """How often the state is saved."""
    max_length: int = Field(1024, ge=8)
    """Longest row in tokens; the rest is cut."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seeds shuffling, initialization and dropout."""


class SFTSpec(TrainingSpec):
    """Supervised fine-tuning: −log π(completion | prompt), averaged over tokens."""

    method: Literal["sft"] = "sft"
    completion_only: bool = True
    """Only completion tokens count in the loss; off, prompt tokens count too."""


class RewardSpec(TrainingSpec):
    """Reward model: −log σ(r(chosen) − r(rejected) − margin). Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155."""

    method: Literal["reward"] = "reward"
    use_margin: bool = False
    """Subtract the rows' margin from the reward difference (Touvron et al. 2023, arXiv:2307.09288, Eq. 2)."""
    centering: float = Field(0.01, ge=0)
    """λ in λ·(r(chosen) + r(rejected))², which keeps rewards around zero (Eisenstein et al. 2023, arXiv:2312.09244)."""


class Sigmoid(Strict):
    """−log σ(β·h), h the difference of log-ratios. Rafailov et al. 2023, arXiv:2305.18290, Eq. 7."""

    kind: Literal["sigmoid"] = "sigmoid"
    label_smoothing: float = Field(0, ge=0, lt=0.5)
    """Assumed share of flipped preferences (conservative DPO)."""
    sft_weight: float = Field(0, ge=0)
    """Weight of an added −log π(chosen | prompt) per token, which keeps the text well-formed."""


class IPO(Strict):
    """(h − 1/2β)², h the difference of per-token log-ratios. Azar et al. 2023, arXiv:2310.12036, Eq. 17."""

    kind: Literal["ipo"] = "ipo"


class DPOSpec(TrainingSpec):
    """Direct preference optimization: learn from pairs without a reward model."""

    method: Literal["dpo"] = "dpo"
    loss: Annotated[Sigmoid | IPO, Field(discriminator="kind")] = Field(default_factory=Sigmoid)
    """Which loss is put on the difference of log-ratios."""
    beta: float = Field(0.1, gt=0)
    """β, the strength of the KL constraint: a larger one keeps the policy nearer to the reference."""


AnySpec = SFTSpec | RewardSpec | DPOSpec
Spec = Annotated[AnySpec, Field(discriminator="method")]
SPEC: TypeAdapter[AnySpec] = TypeAdapter(Spec)
METHODS: dict[str, type[TrainingSpec]] = {"sft": SFTSpec, "reward": RewardSpec, "dpo": DPOSpec}

NEEDS: dict[str, frozenset[RowType]] = {
    "sft": frozenset({RowType.LANGUAGE_MODELING, RowType.PROMPT_COMPLETION}),
    "reward": frozenset({RowType.PREFERENCE}),
    "dpo": frozenset({RowType.PREFERENCE}),
}
"""Row types each method can learn from."""


class Launch(Strict):
    """All a recipe needs, as ``spec.json`` in the run folder: the spec and where its ids lie on this machine."""

    spec: Spec
    """What to do."""
    run_id: int = 0
    """Only for names and log lines; 0 without a studio."""
    attempt: int = 1
    """Which try this is."""
    folder: Path
    """The attempt's folder: ``events.jsonl`` and ``checkpoints/`` are written here."""
    base_model: Path
    """Folder with the base model's safetensors, config and tokenizer (for an adapter: the adapter, its base beside it)."""
    adapter_base: Path | None = None
    """Folder of the base weights if *base_model* is an adapter."""
    rows: Path
    """Parquet file of the dataset version."""
    row_type: RowType
    """The type of those rows."""
    resume_from: Path | None = None
    """A verified checkpoint folder to continue from."""


def spec_schema(method: str) -> dict[str, Any]:
    """JSON schema of *method*'s spec, from which the form is built. Raises ``KeyError``."""
    return METHODS[method].model_json_schema()
