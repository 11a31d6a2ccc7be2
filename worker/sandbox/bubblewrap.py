"""Tier 1: namespaces of its own for every program, made by bubblewrap for an ordinary user.

Never started by root: with ``--uid`` mapped from root, files under ``/proc/sys`` still belong to the real root and could be
written (measured: ``core_pattern``). Here there is no ``/proc`` at all, no ``/sys``, no ``/usr`` but the interpreter's own files,
four devices, and one writable folder of limited size in memory.
"""

import shutil
import subprocess
from functools import cache

from worker.sandbox.interpreter import DEVICES, ENVIRONMENT, FLAGS, Interpreter
from worker.sandbox.limits import Limits


def binary() -> str | None:
    """Where bubblewrap is."""
    return shutil.which("bwrap", path="/usr/bin:/usr/local/bin:/bin")


@cache
def _knows(option: str) -> bool:
    """Whether this version has *option*."""
    told = subprocess.run([binary() or "bwrap", "--help"], capture_output=True, text=True, timeout=10, check=False)
    return option in told.stdout + told.stderr


def command(
    interpreter: Interpreter, limits: Limits, inside: str, seccomp: int, info: int, jobs: int, answers: int
) -> list[str]:
    """The command line. The four numbers are inherited files: filter, bubblewrap's own news, jobs in, answers out."""
    line = [binary() or "bwrap"]
    line += [
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    if _knows("--disable-userns"):
        line.append("--disable-userns")
    line += ["--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--die-with-parent", "--new-session"]
    line += ["--cap-drop", "ALL"]
    if _knows("--clearenv"):
        line.append("--clearenv")
    for name, value in {**ENVIRONMENT, "HOME": "/tmp", "TMPDIR": "/tmp"}.items():
        line += ["--setenv", name, value]
    for folder in interpreter.folders:
        line += ["--ro-bind", folder, folder]
    for folder in interpreter.hidden:
        line += ["--tmpfs", folder]
    for path in interpreter.files:
        line += ["--ro-bind", path, path]
    for path in DEVICES:
        line += ["--dev-bind", path, path]
    if _knows("--size"):
        line += ["--size", str(limits.folder_bytes)]
    line += ["--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
    line += ["--seccomp", str(seccomp), "--info-fd", str(info)]
    return [*line, interpreter.binary, *FLAGS, "-c", inside, str(jobs), str(answers)]
