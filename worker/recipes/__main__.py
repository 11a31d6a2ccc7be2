"""``python -m worker.recipes <folder>/spec.json``: carry out one launch, with or without a studio around it.

A spec for several processes is started by ``torchrun --nproc-per-node N -m worker.recipes <folder>/spec.json``; only the
first process speaks. Events go to ``events.jsonl`` in the launch's folder. SIGTERM and SIGUSR1 ask to stop: after this step, with a
checkpoint. Exit code 0: ``Finished`` was said; 78: the spec cannot work, ``Failed`` was said; anything else: try again
from the last checkpoint, the trace is on standard error.
"""

import importlib
import os
import signal
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from backend.runs.events import Finished
from backend.runs.specs import NEEDS, Launch
from worker import devices
from worker.report import Report, Silence, SpecCannotWork, Stop, StopRequested

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # two threads on a busy machine are slower than one
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""What the studio's worker sets, for those who start a recipe by hand."""

CANNOT_WORK = 78
"""Exit code: do not try again (``EX_CONFIG`` of sysexits.h)."""


def main(path: Path) -> int:
    """The exit code."""
    stop = Stop()
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, stop)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        launch = Launch.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = SpecCannotWork(f"the spec cannot be read: {error}", remedy="Correct the named fields.")
        with Report(path.parent / "events.jsonl") as report:
            report.say(reason.event())
        return CANNOT_WORK
    (launch.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    devices.keep_to_one(launch.spec.devices)
    first = os.environ.get("RANK", "0") == "0"
    with Report(launch.folder / "events.jsonl") if first else Silence() as report:
        return _carry_out(launch, report, stop)


def check_rows(launch: Launch) -> None:
    """Raises :class:`SpecCannotWork` if the method cannot learn from rows of this type."""
    needs = NEEDS[launch.spec.method]
    if launch.row_type not in needs:
        names = " or ".join(sorted(row_type.value for row_type in needs))
        raise SpecCannotWork(
            f"the rows are {launch.row_type.value}, and {launch.spec.method} learns from {names}",
            remedy=f"Use a dataset of {names} rows.",
            field="dataset",
        )


def _carry_out(launch: Launch, report: Report, stop: Stop) -> int:
    try:
        # imported late: torch takes seconds, and a new method is a spec and a file of its name
        import torch

        from worker import ranks

        check_rows(launch)
        devices.check(launch.spec, world=ranks.world(), gpus=torch.cuda.device_count())
        recipe = importlib.import_module(f"worker.recipes.{launch.spec.method}")
        with ranks.joined():
            recipe.run(launch, launch.spec, report, stop)
    except SpecCannotWork as error:
        report.say(error.event(traceback.format_exc()))
        return CANNOT_WORK
    except StopRequested:
        report.say(Finished(outcome="stopped", step=0))
    except (RuntimeError, MemoryError) as error:
        from worker import memory

        if not memory.is_full(error):
            raise
        report.say(
            SpecCannotWork(
                f"memory is full, though the longest rows fitted before the first step: {error}",
                remedy="Lower the batch size (and raise accumulation), lower max_length, or train an adapter.",
            ).event(traceback.format_exc())
        )
        return CANNOT_WORK
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
