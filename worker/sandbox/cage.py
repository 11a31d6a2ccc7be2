"""One sandboxed process: started, fed, listened to, and gone for certain when it is closed.

Only a process that is not root may start one, and only a process without threads: between fork and exec Python runs here.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

from worker.sandbox import bubblewrap, landlock, seccomp
from worker.sandbox.interpreter import DEVICES, ENVIRONMENT, FLAGS, Interpreter
from worker.sandbox.limits import Limits

Tier = Literal["bubblewrap", "landlock"]
TIERS: tuple[Tier, ...] = ("bubblewrap", "landlock")

INSIDE = (Path(__file__).parent / "inside.py").read_text()
FILTER = seccomp.program() if seccomp.supported() else b""


class RunsAsRoot(Exception):
    """Programs are never started by root."""


def _running_tasks(user: int) -> int:
    """Threads that *user* has on this machine: RLIMIT_NPROC counts them all."""
    count = 0
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if entry.stat().st_uid == user:
                        count += os.stat(f"/proc/{entry.name}/task").st_nlink - 2
    return count


def folder_size(folder: str, most: int) -> int:
    """Bytes in *folder*; stops counting beyond *most*. A file counts at least a page, so that very many count too."""
    total, waiting = 0, [folder]
    while waiting and total <= most:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    total += max(4096, entry.stat(follow_symlinks=False).st_blocks * 512)
    return total


class Cage:
    """A sandboxed interpreter that has not yet been told what to do."""

    def __init__(self, tier: Tier, interpreter: Interpreter, limits: Limits, *, stdin: bool = False) -> None:
        if 0 in (*os.getresuid(), *os.getresgid()):
            raise RunsAsRoot("a sandbox is never started by root; the worker changes to another user first")
        self.tier, self.limits = tier, limits
        self.folder: str | None = None
        """The program's working folder, as it is called out here."""
        self._init: int | None = None
        self._first = 0
        jobs_end, self.jobs = os.pipe()
        self.answers, answers_end = os.pipe()
        handed = [jobs_end, answers_end]
        try:
            if tier == "bubblewrap":
                self._start_bubblewrap(interpreter, jobs_end, answers_end, handed, stdin)
            else:
                self._start_landlock(interpreter, jobs_end, answers_end, handed, stdin)
        except BaseException:
            os.close(self.jobs)
            os.close(self.answers)
            raise
        finally:
            for descriptor in handed:
                os.close(descriptor)
        for descriptor in (self.jobs, self.answers):
            os.set_blocking(descriptor, False)

    def _popen(self, command: list[str], handed: list[int], stdin: bool, **more: object) -> None:
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            command,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=handed,
            bufsize=0,
            **more,
        )

    def _start_bubblewrap(
        self, interpreter: Interpreter, jobs: int, answers: int, handed: list[int], stdin: bool
    ) -> None:
        news, news_end = os.pipe()
        filter_file = os.memfd_create("filter")
        os.write(filter_file, FILTER)
        os.lseek(filter_file, 0, os.SEEK_SET)
        handed += [news_end, filter_file]
        self._news = news
        try:
            command = bubblewrap.command(interpreter, self.limits, INSIDE, filter_file, news_end, jobs, answers)
            self._popen(command, handed, stdin, env={"PATH": ENVIRONMENT["PATH"]}, cwd="/")
        except BaseException:
            os.close(news)
            raise

    def _start_landlock(
        self, interpreter: Interpreter, jobs: int, answers: int, handed: list[int], stdin: bool
    ) -> None:
        folder = self.folder = tempfile.mkdtemp(prefix="sandbox-")
        parent, readable = os.getpid(), interpreter.readable

        def confine() -> None:
            libc = ctypes.CDLL(None)
            os.setsid()
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # ends with its parent, and the filter forbids to change that
            if os.getppid() != parent:
                os._exit(1)
            os.chdir(folder)
            landlock.restrict(interpreter.folders, readable, DEVICES, folder)
            seccomp.restrict(FILTER)

        command = [interpreter.binary, *FLAGS, "-c", INSIDE, str(jobs), str(answers)]
        environment = {**ENVIRONMENT, "HOME": folder, "TMPDIR": folder}
        try:
            self._popen(command, handed, stdin, env=environment, cwd=folder, preexec_fn=confine)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def limits_inside(self) -> dict[str, int]:
        """Bounds that the interpreter sets for itself before the program begins."""
        return self.limits.inside(0 if self.tier == "bubblewrap" else _running_tasks(os.getuid()))

    def begun(self) -> None:
        """The interpreter said that it stands: from here on the sandbox exists, and its first process is known."""
        if self.tier == "bubblewrap" and self._init is None:
            self._first = int(json.loads(os.read(self._news, 4096))["child-pid"])
            with contextlib.suppress(ProcessLookupError):
                self._init = os.pidfd_open(self._first)
            self.folder = f"/proc/{self._first}/root/tmp"

    def no_more_jobs(self) -> None:
        """Close the pipe to the interpreter: whoever waits for a line there finds its end."""
        if self.jobs >= 0:
            os.close(self.jobs)
            self.jobs = -1

    def starved(self) -> float:
        """Seconds in which the program was ready to run but the machine had no processor for it (its longest-waiting thread)."""
        try:
            pid = self.process.pid
            if self.tier == "bubblewrap":  # bubblewrap's first process in there has one child: the program
                pid = int(Path(f"/proc/{self._first}/task/{self._first}/children").read_text().split()[0])
            tasks = [Path(entry.path, "schedstat").read_text().split() for entry in os.scandir(f"/proc/{pid}/task")]
            return max(int(waited) for _, waited, _ in tasks) / 1e9
        except (OSError, ValueError, IndexError):  # it is just ending, or this kernel does not count
            return 0.0

    def too_much_written(self) -> bool:
        """Whether the working folder holds too much. In tier 1 the kernel counts bytes but not files, which cost memory as well."""
        if self.folder is None:
            return False
        if self.tier == "landlock":
            return folder_size(self.folder, self.limits.folder_bytes) > self.limits.folder_bytes
        try:
            room = os.statvfs(self.folder)
        except OSError:  # it is just ending
            return False
        return room.f_files - room.f_ffree > self.limits.files

    def close(self) -> int:
        """End the process and everything in its sandbox, wait until that is gone, and say how it had ended."""
        if self._init is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            # The first process of a namespace is reaped after all others in it.
            select.select([self._init], [], [], 10)
            os.close(self._init)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)  # bubblewrap outside passes on how the program ended
        if self.process.poll() is None:
            self.process.kill()
        code: int = self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self.no_more_jobs()
        os.close(self.answers)
        if self.tier == "bubblewrap":
            os.close(self._news)
        if self.tier == "landlock" and self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return code
