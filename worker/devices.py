"""How many processes a run is, how they are started, and what they tell the trainer. No torch: the supervisor asks too."""

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, assert_never

from backend.runs.specs import FSDP, DataParallel, DeepSpeed, Devices, OneDevice, TrainingSpec
from worker.report import SpecCannotWork


def processes(devices: Devices) -> int:
    """How many processes carry out the run."""
    return 1 if isinstance(devices, OneDevice) else devices.processes


def command(single: Sequence[str], devices: Devices) -> list[str]:
    """*single*, the command of one process, started once for each process of the run.

    By torchrun: ``accelerate launch --cpu`` starts a single process and says nothing. A free port is taken each time, so
    that several runs fit on one machine; if one process dies, the others are ended.
    """
    number = processes(devices)
    if number == 1:
        return list(single)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*launcher, f"--nproc-per-node={number}", *single]


def keep_to_one(devices: Devices) -> None:
    """Let a run of one process see one GPU, the first that it may use; to be asked before torch looks for GPUs.

    Seeing several, Transformers would share each batch among them in threads, and take a batch for each.
    """
    if processes(devices) == 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.partition(",")[0]


def check(spec: TrainingSpec, *, world: int, gpus: int) -> None:
    """Raises :class:`SpecCannotWork` if this machine cannot carry out *spec* in *world* processes on *gpus* GPUs."""
    number = processes(spec.devices)
    if world != number:  # by our own fault, or somebody started the recipe by hand
        raise SpecCannotWork(
            f"the spec asks for {number} processes, and there are {world}",
            remedy=f"Start it with `torchrun --nproc-per-node {number} -m worker.recipes spec.json`.",
            field="devices",
        )
    if number == 1 and gpus > 1:
        raise SpecCannotWork(
            f"one process sees {gpus} GPUs and would take a batch for each",
            remedy="Set CUDA_VISIBLE_DEVICES to one of them, or ask for as many processes.",
            field="devices",
        )
    if number == 1:
        return
    spread = isinstance(spec.devices, FSDP | DeepSpeed)
    if gpus < number and (spread or gpus):
        raise SpecCannotWork(
            f"{number} processes need as many GPUs, and the run has {gpus} here",
            remedy="Use fewer processes, or a worker whose slot has more GPUs."
            + (" Without a GPU, one process or data parallel works." if gpus == 0 else ""),
            field="devices",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if not gpus and number > cores:
        raise SpecCannotWork(
            f"{number} processes on {cores} processor cores would wait for each other",
            remedy=f"Use at most {cores} processes.",
            field="devices",
        )
    if isinstance(spec.devices, DeepSpeed) and find_spec("deepspeed") is None:
        raise SpecCannotWork(
            "the package deepspeed is not installed on this worker",
            remedy="Use FSDP, which needs nothing else, or install deepspeed.",
            field="devices",
        )


def arguments(devices: Devices) -> dict[str, Any]:
    """The part of ``TrainingArguments`` that says how the processes share the work."""
    match devices:
        case OneDevice():
            return {}
        case DataParallel():
            return {"ddp_find_unused_parameters": False}
        case FSDP(offload=offload):
            return {
                "fsdp": True,
                # whole weights in a checkpoint: a model that is resumed elsewhere may be spread otherwise
                "fsdp_config": {"version": 2, "cpu_offload": offload, "state_dict_type": "FULL_STATE_DICT"},
            }
        case DeepSpeed(stage=stage, offload=offload):
            zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
            if offload:
                zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
            if stage == 3:
                zero["stage3_gather_16bit_weights_on_model_save"] = True
            return {
                "deepspeed": {
                    "zero_optimization": zero,
                    "bf16": {"enabled": "auto"},
                    "gradient_accumulation_steps": "auto",
                    "gradient_clipping": "auto",
                    "train_batch_size": "auto",
                    "train_micro_batch_size_per_gpu": "auto",
                }
            }
        case unknown:
            assert_never(unknown)
