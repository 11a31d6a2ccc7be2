"""Loading and saving models: from a folder only, safetensors only, and never code that came with the weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backend.runs.specs import Launch, LoRA, Weights
from worker.report import SpecCannotWork

if TYPE_CHECKING:
    from peft import LoraConfig

MERGED = "start"
"""Folder of a run in which an adapter and its base are one model."""


class Parameters(NamedTuple):
    """How many numbers a model has."""

    trainable: int
    total: int


# --- where a run starts ------------------------------------------------------------------------------------------


def starting_point(launch: Launch) -> Path:
    """The folder with the full weights that *launch* starts from.

    A model that is an adapter is merged into its base, on disk: TRL builds a reference model from a path, and the
    reference must be exactly the model we start from. Merging is deterministic, so a later attempt may repeat it.
    """
    check_files(launch.base_model)
    if not _is_adapter(launch.base_model):
        return launch.base_model
    if launch.adapter_base is None:
        raise SpecCannotWork(
            "the model is an adapter, and its base is missing",
            remedy="Start from a model whose base is in the registry.",
            field="base_model",
        )
    check_files(launch.adapter_base)
    from peft import PeftModel

    adapts = _json(launch.base_model / "adapter_config.json").get("task_type")
    base = load(launch.adapter_base, reward=adapts == "SEQ_CLS")
    merged = PeftModel.from_pretrained(base, str(launch.base_model), local_files_only=True).merge_and_unload()
    folder = launch.folder / MERGED
    merged.save_pretrained(folder)
    tokenizer_folder = launch.base_model if (launch.base_model / "tokenizer.json").exists() else launch.adapter_base
    load_tokenizer(tokenizer_folder).save_pretrained(folder)
    return folder


def check_files(folder: Path) -> None:
    """Raises :class:`SpecCannotWork` unless *folder* holds safetensors and brings no code of its own."""
    config = folder / ("adapter_config.json" if _is_adapter(folder) else "config.json")
    if not config.is_file():
        raise SpecCannotWork("the model has no config.json", remedy="Upload the model again.", field="base_model")
    if not any(folder.glob("*.safetensors")):
        raise SpecCannotWork(
            "the model has no safetensors file",
            remedy="Convert the weights with `save_pretrained`; pickled weights can run code and are not loaded.",
            field="base_model",
        )
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name):
            raise SpecCannotWork(
                f"{name} asks to run code that came with the model (auto_map)",
                remedy="Use an architecture that Transformers itself knows.",
                field="base_model",
            )


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SpecCannotWork(f"{path.name} is not JSON: {error}", field="base_model") from error
    return content if isinstance(content, dict) else {}


# --- loading -----------------------------------------------------------------------------------------------------


def load(folder: Path, *, reward: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in *folder* on the CPU: a language model, or a reward model with one output.

    A reward model that starts from a language model gets a new head, drawn from torch's current seed.
    """
    check_files(folder)
    config = _json(folder / "config.json")
    scores = any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or [])
    if scores and not reward:
        raise SpecCannotWork(
            "a reward model cannot write text", remedy="Start from a language model.", field="base_model"
        )
    kind = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    try:
        model: PreTrainedModel = kind.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **({"num_labels": 1} if reward else {}),
        )
    except (ValueError, KeyError) as error:  # an architecture or a quantization that is not known here
        raise SpecCannotWork(f"the model cannot be loaded: {error}", field="base_model") from error
    return model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in *folder*; a missing padding token is replaced by the end token."""
    check_files(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, OSError, KeyError) as error:
        raise SpecCannotWork(f"the tokenizer cannot be loaded: {error}", field="base_model") from error
    if tokenizer.eos_token_id is None:
        raise SpecCannotWork(
            "the tokenizer has no end token (eos_token), so a model could never end",
            remedy="Set eos_token in tokenizer_config.json to the token that ends a turn.",
            field="base_model",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
    """Raises :class:`SpecCannotWork` if token ids or positions would leave the model's tables."""
    table: Any = model.get_input_embeddings()
    rows = table.weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise SpecCannotWork(
            f"the tokenizer has token {highest}, but the model knows only {rows} tokens",
            remedy="Upload the tokenizer that belongs to the model.",
            field="base_model",
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise SpecCannotWork(
            f"{max_length} tokens do not fit: the model has {positions} positions",
            remedy=f"Set it to {positions} or less.",
            field="max_length",
        )


# --- training ----------------------------------------------------------------------------------------------------


def working_dtype(weights: Weights) -> torch.dtype:
    """Half precision only for weights that are frozen anyway, on a GPU that knows bfloat16."""
    frozen = isinstance(weights, LoRA)
    return torch.bfloat16 if frozen and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def lora_config(weights: Weights, *, reward: bool = False) -> "LoraConfig | None":
    """PEFT's configuration of *weights*: all linear layers but the head; ``None`` for full weights."""
    if not isinstance(weights, LoRA):
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=weights.rank,
        lora_alpha=weights.alpha,  # a float works: PEFT only divides it by the rank
        lora_dropout=weights.dropout,
        target_modules="all-linear",
        modules_to_save=["score"] if reward else None,  # a new head must be learned whole
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
    )


def silence_dropout(model: PreTrainedModel) -> None:
    """Set the base model's own dropout to 0, so that policy and reference differ only in their weights.

    TRL's ``disable_dropout`` would also silence the adapter's, which the spec asks for.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def count(model: torch.nn.Module) -> Parameters:
    """Trainable and all parameters; raises :class:`SpecCannotWork` if nothing would be trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    counted = Parameters(sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes))
    if counted.trainable == 0:
        raise SpecCannotWork("no parameter of the model would be trained", field="weights")
    return counted
