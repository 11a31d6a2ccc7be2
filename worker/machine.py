"""What this machine has to offer: cores, memory, disk, accelerators. Asked of the system, without importing torch."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil

from backend import __version__
from backend.runs.leases import Machine


def accelerators() -> list[dict[str, Any]]:
    """Name, memory and memory in use (bytes) of each GPU that ``nvidia-smi`` names; none without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    found = []
    for line in answer.strip().splitlines():
        name, total, used = (part.strip() for part in line.rsplit(",", 2))
        if total.isdigit() and used.isdigit():
            found.append({"name": name, "memory_bytes": int(total) << 20, "used_bytes": int(used) << 20})
    return found


def look(name: str, slots: int, home: Path, sandbox: dict[str, Any] | None = None) -> Machine:
    """This machine as it is now; *sandbox*: what its last self-test said."""
    memory = psutil.virtual_memory()
    home.mkdir(parents=True, exist_ok=True)
    return Machine(
        name=name,
        host=socket.gethostname(),
        slots=slots,
        devices=accelerators(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
        memory_bytes=memory.total,
        memory_used_bytes=memory.total - memory.available,
        disk_free_bytes=shutil.disk_usage(home).free,
        version=__version__,
        sandbox=sandbox,
    )
