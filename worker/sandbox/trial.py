"""The self-test as a worker does it: at its start and every hour, in a process of its own that nobody waits for."""

import json
import math
import subprocess
import sys
from typing import Any

from worker.sandbox.pool import ROOT

EVERY_SECONDS = 3600.0
LONGEST_SECONDS = 300.0


class Trial:
    """Asked again and again with the time; tells when it knows something new."""

    def __init__(self) -> None:
        self.report: dict[str, Any] | None = None
        """What the last one said; ``None`` until the first has ended."""
        self._process: subprocess.Popen[bytes] | None = None
        self._due = self._began = 0.0

    def turn(self, now: float) -> bool:
        """Start one if it is due, take in what it said: whether there is a new report. *now*: of a clock that never goes back."""
        if self._process is None:
            if now >= self._due:
                command = [sys.executable, "-m", "worker.sandbox"]
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT)
                self._began, self._due = now, now + EVERY_SECONDS
            return False
        if self._process.poll() is None and now < self._began + LONGEST_SECONDS:
            return False
        self.report = self._said()
        self._break_off()
        return True

    def _said(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if self._process.poll() is not None:
            try:
                report = json.loads(self._process.stdout.read())
                assert isinstance(report, dict)
            except (ValueError, AssertionError):
                pass
            else:
                return report
        remedy = "Run `python -m worker.sandbox` on that machine and read what it says."
        return {"tier": None, "reason": "the self-test of the sandbox did not end by itself", "remedy": remedy}

    def end(self) -> None:
        """Break off what runs, and begin no other."""
        self._due = math.inf
        self._break_off()

    def _break_off(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
