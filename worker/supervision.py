"""How a worker looks after its runs."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECIPES: tuple[str, ...] = (sys.executable, "-m", "worker.recipes")


@dataclass(frozen=True)
class Supervision:
    """How this worker looks after its runs; the times are settings, shortened in tests."""

    home: Path
    """Folder of this machine; run folders lie in ``runs/``."""
    lease_seconds: float = 60.0
    heartbeat_seconds: float = 10.0
    cancel_grace_seconds: float = 15.0
    drain_grace_seconds: float = 30.0
    pause_seconds: float = 10.0
    stall_seconds: float = 1800.0
    """No event for so long: the child hangs, and another attempt may not."""
    ship_seconds: float = 0.5
    command: Sequence[str] = RECIPES
    drain: Path | None = None
    """Once this file exists the run is brought to a checkpoint and given back."""
    devices: Mapping[int, str] = field(default_factory=dict)
    """Slot → accelerator, where a slot has one of its own."""
