"""An exported script has the run's losses, step by step, and needs nothing of the studio."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backend.runs import export
from backend.runs.specs import METHODS
from tests.worker.recipes.conftest import SPECS
from tests.worker.running import Attempt

ALLOWED = {
    "argparse",
    "hashlib",
    "json",
    "os",
    "unicodedata",
    "torch",
    "datasets",
    "peft",
    "transformers",
    "trl",
    "math",
}


def test_every_method_has_a_script() -> None:
    assert [method for method in METHODS if not export.has_script(method)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_it_reproduces_the_losses(finished: Callable[[str], Attempt], tmp_path: Path, name: str) -> None:
    attempt = finished(name)
    text = export.script(attempt.launch.spec, title=f'Run 7: "{name}" \\ a title', packages={"trl": "1.16.0"})
    imported = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {module.partition(".")[0] for module in imported} <= ALLOWED
    (tmp_path / "run.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-I", "run.py", "--model", str(attempt.launch.base_model), "--rows", str(attempt.launch.rows)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = {said["step"]: said["loss"] for said in map(json.loads, done.stdout.splitlines())}
    ours = {step: values["loss"] for step, values in attempt.metrics().items() if "loss" in values}
    assert len(ours) == attempt.launch.spec.optimization.steps
    assert theirs == pytest.approx(ours, rel=1e-5)
    assert list((tmp_path / "model").glob("*.safetensors"))
