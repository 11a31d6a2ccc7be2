"""One process that should be there: started until it is ready, started again whenever it ends unasked, stopped with all it started."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backend import embedded

LOG_BYTES = 5_000_000
READY_SECONDS = 90.0
STEADY_SECONDS = 30.0
"""A process that ran this long is trusted again: its next restart comes at once."""
STARTS_BEFORE_GIVING_UP = 3


class CannotStart(Exception):
    """A process did not come up; the message says which one and shows the end of its log."""


@dataclass
class Child:
    """One process that should be there."""

    name: str
    command: list[str]
    log: Path
    is_ready: Callable[[], bool]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    stop_signal: int = signal.SIGTERM
    stop_seconds: float = 10
    say: Callable[[str], None] = print
    process: asyncio.subprocess.Process | None = None
    wanted: bool = True

    async def start(self) -> None:
        """Start it and return when it is ready; starts it again if it ends before (a port or a lock just let go)."""
        began = time.monotonic()
        for attempt in range(STARTS_BEFORE_GIVING_UP):
            await self._spawn()
            if await self._until_ready():
                self.say(f"{self.name} is ready ({time.monotonic() - began:.1f} s)")
                return
            await asyncio.sleep(0.2 * 2**attempt)
        raise CannotStart(f"{self.name} does not start.\n{self.log_tail()}\nIts log: {self.log}")

    async def _spawn(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.cwd,
                env={**os.environ, **self.env}, preexec_fn=embedded.dies_with_parent(self.stop_signal),
            )  # fmt: skip

    async def _until_ready(self) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.returncode is not None:
                return False
            if await asyncio.to_thread(self.is_ready):
                return True
            await asyncio.sleep(0.03)
        await self._kill()
        return False

    async def watch(self) -> None:
        """Start it again whenever it ends unasked, with a growing pause while it keeps ending soon after."""
        fails = 0
        while self.process is not None:
            began = time.monotonic()
            code = await self.process.wait()
            if not self.wanted:
                return
            self._end_group(signal.SIGKILL)
            fails = 0 if time.monotonic() - began > STEADY_SECONDS else fails + 1
            pause = min(0.1 * 2**fails, 15)
            self.say(f"{self.name} ended ({_how(code)}); it starts again in {pause:.1f} s. Its log: {self.log}")
            await asyncio.sleep(pause)
            if self._is_unwanted():
                return
            await self._spawn()
            if await self._until_ready():
                self.say(f"{self.name} is back")

    def _is_unwanted(self) -> bool:
        return not self.wanted

    async def stop(self) -> None:
        """Ask it to end, insist after ``stop_seconds``, and leave nothing of its process group."""
        self.wanted = False
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(self.stop_signal)
            try:
                await asyncio.wait_for(self.process.wait(), self.stop_seconds)
            except TimeoutError:
                self.say(f"{self.name} did not end in {self.stop_seconds:.0f} s and is killed")
                await self._kill()
        self._end_group(signal.SIGKILL)

    async def _kill(self) -> None:
        assert self.process is not None
        self._end_group(signal.SIGKILL)
        await self.process.wait()

    def hurry(self) -> None:
        """End it now, whatever it is doing."""
        self.wanted = False
        self._end_group(signal.SIGKILL)

    def _end_group(self, sig: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sig)

    def log_tail(self, lines: int = 12) -> str:
        """The end of its log, indented."""
        with contextlib.suppress(OSError):
            return "\n".join(f"    {line}" for line in self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def rotate(log: Path) -> None:
    """Keep one older file once *log* has grown large."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
