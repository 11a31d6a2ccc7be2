"""How much memory something takes on the device that trains, and what to do where it does not fit."""

import ctypes
import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from backend.runs.specs import Adapter, OnlineSpec, TrainingSpec
from worker.report import SpecCannotWork


def is_full(error: BaseException) -> bool:
    """Whether *error* says that memory ran out, on an accelerator or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)


def peak_of(work: Callable[[], None]) -> int | None:
    """Bytes in use at the worst moment of *work*, all that was there before included; ``None`` if nobody measures."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        work()
        return None
    work()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return None


def there_is() -> int | None:
    """Bytes of the device that trains, or that this process may have."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


def give_back() -> None:
    """Free what nobody holds any more, so that what comes next is measured by itself."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps freed memory otherwise
        trim(0)


class Fits(NamedTuple):
    """A batch that fits."""

    rows: int
    peak: int | None
    """Bytes."""


def advice(spec: TrainingSpec, *, longest: int, fits: list[Fits], trainable: int) -> SpecCannotWork:
    """What to change, and what it would take, where a batch of the longest rows does not fit.

    *longest*: tokens of the longest row. *fits*: smaller batches that do, the largest first. *trainable*: parameters.
    """
    how = spec.optimization
    has = f" of {_size(total)}" if (total := there_is()) else ""
    if isinstance(spec, OnlineSpec):
        new = spec.sampling.max_new_tokens
        said = (
            f"{how.batch_size} completions of the longest prompts ({longest} tokens with them) do not fit into memory"
        )
        shorter = f"lower sampling.max_new_tokens ({new} of the {longest} tokens are the completion's)"
        too_long = "sampling.max_new_tokens"
    else:
        said = f"{how.batch_size} of the longest rows ({longest} tokens) do not fit into memory"
        shorter = f"lower max_length (the longest row has {longest} tokens; half of it takes about half)"
        too_long = "max_length"
    knobs = []
    if fits:
        best = fits[0]
        slope = 0.0
        if best.peak is not None:
            said += f"; {best.rows} took {_size(best.peak)}{has}"
            if len(fits) > 1 and fits[1].peak is not None:
                slope = (best.peak - fits[1].peak) / (best.rows - fits[1].rows)
            if slope > 0:
                said += f", so {how.batch_size} need about {_size(best.peak + slope * (how.batch_size - best.rows))}"
        effective = how.batch_size * how.accumulation
        rows = next(n for n in range(best.rows, 0, -1) if effective % n == 0)  # groups of completions stay whole
        knobs.append(
            f"lower the batch size to {rows} and raise accumulation to {effective // rows} (the same effective batch)"
        )
        knobs.append(shorter)
    else:
        said += ", nor does a single one"
        knobs.append(shorter)
    if not isinstance(spec.weights, Adapter):
        state = _size(12 * trainable)  # gradient and two moments, 4 bytes each
        knobs.append(f"train an adapter: gradients and optimizer state of all weights take {state}")
    remedy = ", or ".join(knobs)
    return SpecCannotWork(
        said, remedy=f"{remedy[0].upper()}{remedy[1:]}.", field="optimization.batch_size" if fits else too_long
    )


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
