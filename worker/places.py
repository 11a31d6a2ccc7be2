"""Who is who on this machine: which process holds a run, whether it still lives, and what it left behind."""

import os
import sys
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


def _start(process: psutil.Process) -> str:
    """When it began: whole clock ticks since the boot, or seconds since 1970 (with a point) where nobody counts ticks.

    Linux derives the seconds from the time of the boot, which moves whenever the clock is set: after that every process
    would seem to be another one. Elsewhere ``_boot`` moves with it, and then nobody is said to be gone.
    """
    if sys.platform != "linux":
        return f"{process.create_time():.2f}"
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(process.pid) from None
    return str(int(stat.rpartition(b")")[2].split()[19]))  # field 22; the name, field 2, may hold spaces and brackets


def place(pid: int | None = None) -> str:
    """Boot, process id and start of a process: a later process with the same id is another place."""
    process = psutil.Process(pid)
    return f"{_boot()}|{process.pid}|{_start(process)}"


def is_gone(where: str) -> bool:
    """Whether the process at *where* certainly does not live: it was of this boot, and is not there now.

    Leases that older versions wrote hold seconds where ticks are told now. They cannot be compared, so while any process
    has that id its lease has to end by itself.
    """
    boot, _, rest = where.partition("|")
    pid, _, start = rest.partition("|")
    if boot != _boot() or not pid.isdigit():
        return False
    try:
        process = psutil.Process(int(pid))
        now = _start(process)
        is_another = start != now and ("." in start) == ("." in now)
        return is_another or bool(process.status() == psutil.STATUS_ZOMBIE)
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
