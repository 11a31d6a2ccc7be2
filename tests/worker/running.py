"""Runs recipes as the worker does: one child process, one folder, nothing but files between them.

Importing torch and its kin takes six seconds, longer than most small runs: a process that has imported them, and done
nothing else, is forked for each run. Some still start a Python of their own (*fresh*), so that what differs from one to the
next, such as the order of sets, cannot hide.
"""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from backend.datasets.rows import Row, RowType
from backend.runs.specs import METHODS, Launch, OneDevice, TrainingSpec
from worker.devices import command
from worker.recipes.__main__ import _ENVIRONMENT

ROOT = Path(__file__).parents[2]
BASE = ROOT / "backend" / "demo" / "base"

TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


_TYPES = {
    "margin": pa.float64(),
    "probability": pa.float64(),
    "label": pa.bool_(),
    "completions": pa.list_(pa.string()),
    "labels": pa.list_(pa.bool_()),
}


def write_rows(path: Path, rows: list[Row]) -> Path:
    """A Parquet file as a dataset version has it: objects as JSON text that says so."""
    fields, columns = [], []
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        example = next(value for value in values if value is not None)
        as_json = isinstance(example, dict)
        kind = _TYPES.get(name, TURNS if isinstance(example, list) else pa.string())
        fields.append(pa.field(name, kind, metadata={"kind": "json"} if as_json else None))
        columns.append(pa.array(map(json.dumps, values) if as_json else values, kind))
    pq.write_table(pa.table(columns, pa.schema(fields)), path, compression="zstd")
    return path


class Forked:
    """A forked child, as :class:`subprocess.Popen` would show it: ``python`` *program* *arguments*, in the folder *where*.

    *program* is a file, or the name of a module. What it prints goes to the end of the file *output*.
    """

    def __init__(
        self, program: str, *arguments: str, where: Path, output: Path, environment: dict[str, str] | None = None
    ) -> None:
        given = (program, arguments, where, output, dict(os.environ) if environment is None else environment)
        self._process = _warm().Process(target=_become, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:  # else nobody, or somebody else, has this number
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self._process.kill()


@cache
def _warm() -> ForkServerContext:
    """What forks; it has imported the recipes under the environment that they have in a worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"worker.recipes.{method}" for method in METHODS])
    with _environment({**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()
    return context


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _become(program: str, arguments: tuple[str, ...], where: Path, output: Path, environment: dict[str, str]) -> None:
    """In the child."""
    file = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for target in (1, 2):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(where)
    sys.argv = [program, *arguments]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


class Attempt:
    """One attempt at a run, and what it said; *fresh*: in a Python of its own."""

    process: "subprocess.Popen[bytes] | Forked"

    def __init__(self, launch: Launch, *, fresh: bool = False, **environment: str) -> None:
        launch.folder.mkdir(parents=True, exist_ok=True)
        self.launch = launch
        self.folder = launch.folder
        spec = launch.folder / "spec.json"
        spec.write_text(launch.model_dump_json())
        self.output = (launch.folder / "output.log").open("ab")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
        if not fresh and isinstance(launch.spec.devices, OneDevice):
            output = Path(self.output.name)
            self.process = Forked("worker.recipes", str(spec), where=ROOT, output=output, environment=environment)
        else:
            self.process = subprocess.Popen(
                [*command([sys.executable, "-m", "worker.recipes"], launch.spec.devices), str(spec)],
                cwd=ROOT,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def finish(self, timeout: float = 300) -> int:
        """Wait for its end; returns the exit code. What hangs is killed: it would slow the tests after it."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.output.close()
        return code

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """What it said so far: whole lines."""
        path = self.folder / "events.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        events = [json.loads(line) for line in lines]
        return [event for event in events if kind in (None, event["kind"])]

    def wait_for(self, kind: str, step: int, timeout: float = 150) -> None:
        """Until an event of *kind* at *step* or later was said."""
        deadline = time.monotonic() + timeout
        while not any(event.get("step", 0) >= step for event in self.events(kind)):
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"no {kind} at step {step}: {self.log()}")
            assert self.process.poll() is None, f"ended before {kind} at step {step}: {self.log()}"
            time.sleep(0.01)

    def metrics(self) -> dict[int, dict[str, float]]:
        """Step → name → value."""
        values: dict[int, dict[str, float]] = {}
        for event in self.events("metrics"):
            values.setdefault(event["step"], {}).update(event["values"])
        return values

    def log(self) -> str:
        return (self.folder / "output.log").read_text()[-3000:]


def run(launch: Launch, *, expect: int = 0, fresh: bool = False, **environment: str) -> Attempt:
    """Run to the end; fails with the log if the exit code is not *expect*."""
    attempt = Attempt(launch, fresh=fresh, **environment)
    code = attempt.finish()
    assert code == expect, attempt.log()
    return attempt


def launch(folder: Path, spec: TrainingSpec, rows: Path, row_type: RowType, **more: Any) -> Launch:
    """A launch on the demo's base model."""
    return Launch(spec=spec, folder=folder, rows=rows, row_type=row_type, **{"base_model": BASE, **more})
