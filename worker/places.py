"""Who is who on this machine: which process holds a run, whether it still lives, and what it left behind."""

import os
from pathlib import Path

import psutil

from backend.db import Sessions

MARK = "STUDIO_ATTEMPT"
"""Environment variable by which every descendant of an attempt can be found, whatever group it moved to."""


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # containers share the boot but not the process ids
    except OSError:
        return str(int(psutil.boot_time()))


def place(pid: int | None = None) -> str:
    """Boot, process id and start of a process: a later process with the same id is another place."""
    process = psutil.Process(pid)
    return f"{_boot()}|{process.pid}|{process.create_time():.2f}"


def is_gone(where: str) -> bool:
    """Whether the process at *where* certainly does not live: it was of this boot, and is not there now."""
    boot, _, rest = where.partition("|")
    pid, _, _ = rest.partition("|")
    if boot != _boot() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        return place(int(pid)) != where or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def mark_of(sessions: Sessions, run_id: int, fence: int) -> str:
    """What the processes of one attempt carry; it names the studio too, for two of them can share a machine."""
    url = sessions.kw["bind"].url
    return f"{url.host}:{url.port}/{url.database}#{run_id}.{fence}"


def sweep(mark: str) -> int:
    """Kill every process that carries *mark* in its environment; answers how many there were."""
    found = 0
    for process in psutil.process_iter(["pid"]):
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.kill()
                found += 1
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            continue
    return found
