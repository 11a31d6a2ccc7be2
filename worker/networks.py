"""Loading and saving models: from a folder only, safetensors only, and never code that came with the weights."""

import copy
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backend.runs.specs import Adapter, Launch, LoRA, ModelFolder, QLoRA, Weights
from worker import ranks
from worker.heads import HEADS, pad_to_score, sharpen
from worker.report import SpecCannotWork

if TYPE_CHECKING:
    from peft import LoraConfig

MERGED = "merged"
"""Folder of a run in which adapters and their bases are one model each."""
_START = "start"

Task = Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"]
"""What a model is for, in PEFT's words: it writes; it scores a text; it scores each token."""

_CLASSES: dict[Task, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}
_SUFFIXES: dict[str, Task] = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}


class Parameters(NamedTuple):
    """How many numbers a model has."""

    trainable: int
    total: int


# --- where models lie --------------------------------------------------------------------------------------------


def starting_point(launch: Launch) -> Path:
    """The folder with the full weights that *launch* starts from.

    A model that is an adapter is merged into its base, on disk: TRL builds a reference model from a path, and the
    reference must be exactly the model we start from. Merging is deterministic, so a later attempt may repeat it.
    """
    return folder_of(ModelFolder(folder=launch.base_model, adapter_base=launch.adapter_base), launch.folder, _START)


def folder_of(model: ModelFolder, folder: Path, name: str = "", *, field: str = "base_model") -> Path:
    """The folder with the full weights of *model*: its own, or one under *folder* where it is merged into its base.

    Merged once: whoever asks again finds it under *name* (the name of the model's folder, if none is given). *field*:
    the spec's field that names the model.
    """
    check_files(model.folder, field=field)
    if not _is_adapter(model.folder):
        return model.folder
    if model.adapter_base is None:
        raise SpecCannotWork(
            "the model is an adapter, and its base is missing",
            remedy="Take a model whose base is in the registry.",
            field=field,
        )
    final = folder / MERGED / (name or model.folder.name)
    with ranks.first_goes_first():  # the others find it
        if not final.exists():
            merge(model.adapter_base, model.folder, final)
    return final


def merged(folder: Path) -> Path:
    """Where the run in *folder* merged the adapter that it starts from."""
    return folder / MERGED / _START


def merge(base: Path, adapter: Path, final: Path) -> None:
    """Write *base* with *adapter* merged into it as *final*: whole or not at all."""
    from peft import PeftModel

    check_files(base)
    task: Task = _json(adapter / "adapter_config.json").get("task_type") or "CAUSAL_LM"
    loaded = load(base, task=task, heads=_heads(adapter))
    whole: Any = PeftModel.from_pretrained(loaded, str(adapter), local_files_only=True).merge_and_unload()
    tokenizer = load_tokenizer(adapter if (adapter / "tokenizer.json").exists() else base, task=task)
    if task == "SEQ_CLS":
        whole.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by it the last token is found
    writing = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(writing, ignore_errors=True)
    whole.save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    for path in adapter.glob("*.json"):  # what a recipe wrote beside its weights, such as a calibration
        if path.name not in ("adapter_config.json", "manifest.json") and not (writing / path.name).exists():
            shutil.copyfile(path, writing / path.name)
    writing.rename(final)


def _heads(adapter: Path) -> int:
    """Outputs of the head that *adapter* brings along; 1 if it brings none."""
    from safetensors import safe_open

    for path in adapter.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # not a dict
                if key.endswith(tuple(f"{name}.weight" for name in HEADS)):
                    return int(file.get_slice(key).get_shape()[0])
    return 1


def check_files(folder: Path, *, field: str = "base_model") -> None:
    """Raises :class:`SpecCannotWork` (about *field*) unless *folder* holds safetensors and brings no code of its own."""
    config = folder / ("adapter_config.json" if _is_adapter(folder) else "config.json")
    if not config.is_file():
        raise SpecCannotWork("the model has no config.json", remedy="Upload the model again.", field=field)
    if not any(folder.glob("*.safetensors")):
        raise SpecCannotWork(
            "the model has no safetensors file",
            remedy="Convert the weights with `save_pretrained`; pickled weights can run code and are not loaded.",
            field=field,
        )
    for name in ("config.json", "adapter_config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and "auto_map" in _json(folder / name):
            raise SpecCannotWork(
                f"{name} asks to run code that came with the model (auto_map)",
                remedy="Use an architecture that Transformers itself knows.",
                field=field,
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


def load(
    folder: Path,
    *,
    reward: bool = False,
    task: Task | None = None,
    heads: int = 1,
    dtype: torch.dtype = torch.float32,
    quantized: QLoRA | None = None,
) -> PreTrainedModel:
    """The model in *folder*, as a language model, or with *reward* (or *task*) as one that scores.

    A model that scores has as many outputs as its folder says; one that starts from a language model gets a new head
    with *heads* outputs, drawn from torch's current seed. On the CPU; *quantized* to 4 bits, on the GPU.
    """
    check_files(folder)
    task = task or ("SEQ_CLS" if reward else "CAUSAL_LM")
    is_for = task_of(folder)
    if is_for != "CAUSAL_LM" and task == "CAUSAL_LM":
        raise SpecCannotWork(
            "a reward model cannot write text", remedy="Start from a language model.", field="base_model"
        )
    if "CAUSAL_LM" != is_for != task:
        raise SpecCannotWork(
            f"the model scores {'steps' if is_for == 'TOKEN_CLS' else 'whole texts'}, and the method scores "
            f"{'steps' if task == 'TOKEN_CLS' else 'whole texts'}",
            remedy="Start from a language model, or from a model of the same kind.",
            field="base_model",
        )
    try:
        model: PreTrainedModel = _CLASSES[task].from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **({"num_labels": heads} if task != "CAUSAL_LM" and is_for == "CAUSAL_LM" else {}),
            **(_four_bits(quantized, task) if quantized else {}),
        )
    except (ValueError, KeyError) as error:  # an architecture or a quantization that is not known here
        raise SpecCannotWork(f"the model cannot be loaded: {error}", field="base_model") from error
    if task != "CAUSAL_LM":
        sharpen(model)
    return model


def task_of(folder: Path) -> Task:
    """What the full weights in *folder* are for, as their config says."""
    named = _json(folder / "config.json").get("architectures") or [""]
    return next((task for suffix, task in _SUFFIXES.items() if named[0].endswith(suffix)), "CAUSAL_LM")


def load_to_train(folder: Path, weights: Weights, **more: Any) -> PreTrainedModel:
    """The model in *folder* as *weights* says it will be trained; *more* as :func:`load` takes it."""
    return load(folder, dtype=working_dtype(weights), quantized=weights if isinstance(weights, QLoRA) else None, **more)


def _four_bits(weights: QLoRA, task: Task = "CAUSAL_LM") -> dict[str, Any]:
    """What loads the frozen weights as 4-bit NormalFloat. Dettmers et al. 2023, arXiv:2305.14314, Sec. 3.

    A head stays as it is: it learns. (By itself Transformers spares the last layer only if that has no bias.)
    """
    if not torch.cuda.is_available():
        raise SpecCannotWork(
            "weights in 4 bits need a GPU, and this worker has none",
            remedy="Use LoRA, or a worker with a GPU.",
            field="weights",
        )
    if find_spec("bitsandbytes") is None:
        raise SpecCannotWork(
            "weights in 4 bits need the package bitsandbytes, which this worker lacks",
            remedy="Use LoRA, or install the extra `quantization` on the worker.",
            field="weights",
        )
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=weights.double_quantization,
            bnb_4bit_compute_dtype=working_dtype(weights),
            llm_int8_skip_modules=None if task == "CAUSAL_LM" else list(HEADS),
        ),
        "device_map": {"": torch.cuda.current_device()},
    }


def load_tokenizer(folder: Path, *, task: Task = "CAUSAL_LM") -> PreTrainedTokenizerBase:
    """The tokenizer in *folder*; a missing padding token is replaced by the end token.

    For a model that scores whole texts (*task*): by one that leaves the end to be read, see :func:`worker.heads.pad_to_score`.
    """
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
    if task == "SEQ_CLS":
        pad_to_score(tokenizer, learned=_is_adapter(folder) or task_of(folder) == task)
    elif tokenizer.pad_token_id is None:
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
    frozen = isinstance(weights, Adapter)
    return torch.bfloat16 if frozen and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def lora_config(weights: Weights, *, reward: bool = False, task: Task | None = None) -> "LoraConfig | None":
    """PEFT's configuration of *weights*: all linear layers but the head; ``None`` for full weights."""
    if not isinstance(weights, Adapter):
        return None
    from peft import LoraConfig

    task = task or ("SEQ_CLS" if reward else "CAUSAL_LM")
    return LoraConfig(
        r=weights.rank,
        lora_alpha=weights.alpha,  # a float works: PEFT only divides it by the rank
        lora_dropout=weights.dropout,
        use_dora=isinstance(weights, LoRA) and weights.dora,
        target_modules="all-linear",
        exclude_modules=None if task == "CAUSAL_LM" else list(HEADS),
        modules_to_save=None if task == "CAUSAL_LM" else list(HEADS),  # a new head must be learned whole
        task_type=task,
    )


def silence_dropout(model: torch.nn.Module) -> None:
    """Set the base model's own dropout to 0, so that policy and reference differ only in their weights.

    It may be a module, a number of a layer (OPT, Bloom), or looked up in the config at every pass (Falcon): then the
    layer gets a copy, and what is saved says what it said. The noise of a router is no better. TRL's ``disable_dropout``
    would also silence the adapter's, which the spec asks for.
    """
    quiet = {}
    for module in list(model.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        owners: list[object] = [module]
        config = getattr(module, "config", None)
        if config is not None and not hasattr(module, "save_pretrained"):
            if id(config) not in quiet:
                quiet[id(config)] = copy.copy(config)
            module.config = quiet[id(config)]
            owners.append(module.config)
        for owner in owners:
            for name, value in list(vars(owner).items()):
                if isinstance(value, float) and ("drop" in name or "jitter" in name):
                    setattr(owner, name, 0.0)


def lift(model: torch.nn.Module) -> None:
    """Let what learns do so in single precision: in bfloat16 small steps are rounded away (see :class:`worker.heads.Head`).

    To be asked when the trainer stands: on frozen weights in 4 bits TRL's make everything that learns bfloat16.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def count(model: torch.nn.Module) -> Parameters:
    """Trainable and all parameters; raises :class:`SpecCannotWork` if nothing would be trained."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    counted = Parameters(sum(n for n, grad in sizes if grad), sum(n for n, _ in sizes))
    if counted.trainable == 0:
        raise SpecCannotWork("no parameter of the model would be trained", field="weights")
    return counted
