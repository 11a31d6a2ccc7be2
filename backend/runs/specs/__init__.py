"""What a run is asked to do: one closed, validated object, the same in the form, the table, Compare and the recipe.

A hyperparameter exists only where it means something, so the variants nest. The sentence under a field is its comment,
its OpenAPI description and the help text of the form. Pydantic only: the worker imports this without the database.

Three files: ``parts`` (what every method shares), ``rewards`` (what scores a completion), ``methods`` (a spec each).
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from backend.datasets.rows import RowType
from backend.runs.specs.methods import (
    IPO,
    AdaptiveBeta,
    AttributeRewardSpec,
    BatchBaseline,
    DPOSpec,
    FixedBeta,
    GroupAdvantage,
    GRPOSpec,
    Hinge,
    KeepAll,
    KLPenalty,
    KTOSpec,
    LeaveOneOut,
    OnlineSpec,
    ORPOSpec,
    PPOSpec,
    ProcessRewardSpec,
    Resample,
    RewardSpec,
    Robust,
    Sampling,
    ScoreCare,
    SFTSpec,
    Sigmoid,
    SimPOSpec,
    ValueHead,
    ValueModel,
)
from backend.runs.specs.parts import (
    FSDP,
    Adapter,
    Checkpoints,
    DataParallel,
    DeepSpeed,
    Devices,
    Evaluation,
    FullWeights,
    HeldOut,
    LoRA,
    OneDevice,
    Optimization,
    QLoRA,
    Strict,
    TrainingSpec,
    Weights,
)

AnySpec = (
    SFTSpec
    | RewardSpec
    | AttributeRewardSpec
    | ProcessRewardSpec
    | DPOSpec
    | KTOSpec
    | ORPOSpec
    | SimPOSpec
    | PPOSpec
    | GRPOSpec
)
Spec = Annotated[AnySpec, Field(discriminator="method")]
SPEC: TypeAdapter[AnySpec] = TypeAdapter(Spec)
METHODS: dict[str, type[TrainingSpec]] = {
    "sft": SFTSpec,
    "reward": RewardSpec,
    "attribute_reward": AttributeRewardSpec,
    "process_reward": ProcessRewardSpec,
    "dpo": DPOSpec,
    "kto": KTOSpec,
    "orpo": ORPOSpec,
    "simpo": SimPOSpec,
    "ppo": PPOSpec,
    "grpo": GRPOSpec,
}

TITLES: dict[str, str] = {
    "sft": "SFT",
    "reward": "Reward model",
    "attribute_reward": "Attribute scores",
    "process_reward": "Process reward",
    "dpo": "DPO",
    "kto": "KTO",
    "orpo": "ORPO",
    "simpo": "SimPO",
    "ppo": "PPO",
    "grpo": "GRPO",
}
"""What people call the methods."""

REWARD_MODELS = frozenset({"reward", "attribute_reward", "process_reward"})
"""Methods whose model scores text instead of writing it."""

_WITH_PROMPTS = frozenset({RowType.PROMPT_ONLY, RowType.PROMPT_COMPLETION, RowType.PREFERENCE, RowType.UNPAIRED})

NEEDS: dict[str, frozenset[RowType]] = {
    "sft": frozenset({RowType.LANGUAGE_MODELING, RowType.PROMPT_COMPLETION}),
    "reward": frozenset({RowType.PREFERENCE}),
    "attribute_reward": frozenset({RowType.SCORED}),
    "process_reward": frozenset({RowType.STEPWISE}),
    "dpo": frozenset({RowType.PREFERENCE}),
    "kto": frozenset({RowType.UNPAIRED, RowType.PREFERENCE}),
    "orpo": frozenset({RowType.PREFERENCE}),
    "simpo": frozenset({RowType.PREFERENCE}),
    "ppo": _WITH_PROMPTS,
    "grpo": _WITH_PROMPTS,
}
"""Row types each method can learn from; those that sample use only the prompts."""


class ModelFolder(Strict):
    """Where a model lies on this machine."""

    folder: Path
    """Its safetensors, config and tokenizer; for an adapter, the adapter."""
    adapter_base: Path | None = None
    """Folder of the base weights if it is an adapter."""


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
    models: dict[int, ModelFolder] = Field(default_factory=dict)
    """Where the models of ``spec.other_models()`` lie."""
    rows: Path
    """Parquet file of the dataset version."""
    row_type: RowType
    """The type of those rows."""
    resume_from: Path | None = None
    """A verified checkpoint folder to continue from."""


class _WithDefaults(GenerateJsonSchema):
    """Writes defaults that a factory makes, too: the form and whoever reads the API start from the same values."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = self.generate_inner(schema["schema"])
        if "default" in schema:
            return super().default_schema(schema)
        return {**made, "default": self.encode_default(schema["default_factory"]())}  # type: ignore[call-arg]


def stored(spec: Mapping[str, Any]) -> AnySpec:
    """A spec that was valid when it was stored, perhaps by an earlier version: fields that no longer exist are left out.

    What people send is held to every name; of what a run was once asked, the rest is still true and must stay readable.
    """
    try:
        return SPEC.validate_python(spec)
    except ValidationError as error:
        gone = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
        if not gone:
            raise
    kept = deepcopy(dict(spec))
    for location in gone:
        place: Any = kept
        for part in location[:-1]:
            below = place.get(part) if isinstance(place, dict) else place[part]
            place = below if isinstance(below, dict | list) else place  # the name of a union's member is no key
        place.pop(location[-1], None)
    return SPEC.validate_python(kept)


def spec_schema(method: str) -> dict[str, Any]:
    """JSON schema of *method*'s spec, from which the form is built. Raises ``KeyError``."""
    return METHODS[method].model_json_schema(schema_generator=_WithDefaults)


__all__ = [
    "FSDP",
    "IPO",
    "METHODS",
    "NEEDS",
    "REWARD_MODELS",
    "SPEC",
    "TITLES",
    "Adapter",
    "AdaptiveBeta",
    "AnySpec",
    "AttributeRewardSpec",
    "BatchBaseline",
    "Checkpoints",
    "DPOSpec",
    "DataParallel",
    "DeepSpeed",
    "Devices",
    "Evaluation",
    "FixedBeta",
    "FullWeights",
    "GRPOSpec",
    "GroupAdvantage",
    "HeldOut",
    "Hinge",
    "KLPenalty",
    "KTOSpec",
    "KeepAll",
    "Launch",
    "LeaveOneOut",
    "LoRA",
    "ModelFolder",
    "ORPOSpec",
    "OneDevice",
    "OnlineSpec",
    "Optimization",
    "PPOSpec",
    "ProcessRewardSpec",
    "QLoRA",
    "Resample",
    "RewardSpec",
    "Robust",
    "SFTSpec",
    "Sampling",
    "ScoreCare",
    "Sigmoid",
    "SimPOSpec",
    "Spec",
    "Strict",
    "TrainingSpec",
    "ValueHead",
    "ValueModel",
    "Weights",
    "spec_schema",
    "stored",
]
