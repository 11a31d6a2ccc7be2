"""The architecture as tests: who may import whom, and what an import costs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import backend
import worker

ROOT = Path(__file__).resolve().parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")
TRAINING_STACK = (
    "worker",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
)
WEB_AND_DATABASE = ("sqlalchemy", "fastapi", "starlette", "celery", "redis", "psycopg", "pyarrow", "numpy", "httpx")


def lint_imports(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LINT_IMPORTS, "--no-cache", *arguments], cwd=ROOT, capture_output=True, text=True, env={"COLUMNS": "200"}
    )


def in_fresh_interpreter(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_packages_under_test_are_those_of_this_checkout() -> None:
    assert Path(backend.__file__).is_relative_to(ROOT)
    assert Path(worker.__file__).is_relative_to(ROOT)


def test_the_import_contracts_are_kept() -> None:
    done = lint_imports()
    assert done.returncode == 0, done.stdout
    kept = re.search(r"Contracts: (\d+) kept, 0 broken", done.stdout)
    assert kept is not None, done.stdout
    assert int(kept[1]) == (ROOT / "pyproject.toml").read_text().count("[[tool.importlinter.contracts]]")


def test_the_linter_looks_at_every_file(tmp_path: Path) -> None:
    """Counted without the packages from outside, each of which the linter would count as a file."""
    config = tmp_path / "contracts.ini"
    config.write_text(
        "[importlinter]\nroot_packages =\n    backend\n    worker\n"
        "[importlinter:contract:1]\nname = any\ntype = forbidden\n"
        "source_modules =\n    backend\nforbidden_modules =\n    worker\n"
    )
    done = lint_imports("--config", str(config))
    analyzed = re.search(r"Analyzed (\d+) files, (\d+) dependencies", done.stdout)
    assert analyzed is not None, done.stdout
    files = sum(1 for package in ("backend", "worker") for _ in (ROOT / package).rglob("*.py"))
    assert int(analyzed[1]) == files
    assert int(analyzed[2]) > files


def test_a_forbidden_import_is_found(tmp_path: Path) -> None:
    """The linter sees the imports that there are: a contract against one of them breaks."""
    config = tmp_path / "contracts.ini"
    config.write_text(
        "[importlinter]\nroot_package = backend\n"
        "[importlinter:contract:1]\nname = none\ntype = forbidden\n"
        "source_modules =\n    backend.app\nforbidden_modules =\n    backend.db\n"
    )
    done = lint_imports("--config", str(config))
    assert done.returncode == 1
    assert "backend.app -> backend.db" in done.stdout


def test_the_whole_backend_works_without_the_training_stack() -> None:
    """The web image holds no torch, so no module of the backend may need it, not even when it is first used."""
    program = f"""
import importlib, pkgutil, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {TRAINING_STACK!r}:
            raise ImportError("forbidden here: " + name)

sys.meta_path.insert(0, Forbidden())
import backend
names = [module.name for module in pkgutil.walk_packages(backend.__path__, "backend.")]
for name in names:
    importlib.import_module(name)
from backend.app import create_app
from backend.settings import Settings
print(len(names), len(create_app(Settings()).openapi()["paths"]))
"""
    modules, paths = map(int, in_fresh_interpreter(program).split())
    assert modules > 40
    assert paths > 20


def test_settings_are_read_from_the_environment_only_where_a_process_starts() -> None:
    """Whoever else needs a setting is given it, so that two studios fit into one process and tests need no environment."""
    reads = {
        str(path.relative_to(ROOT))
        for package in ("backend", "worker")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Settings"
    }
    assert reads <= {"backend/app.py", "backend/cli/asking.py", "backend/cli/machine.py", "worker/app.py"}, reads
    assert "backend/app.py" in reads


@pytest.mark.parametrize(
    "module", ["backend.runs.specs", "backend.runs.events", "backend.datasets.rows", "backend.labeling.judgments"]
)
def test_the_shared_vocabulary_costs_pydantic_and_nothing_else(module: str) -> None:
    program = f"""
import sys, {module}
print(",".join(sorted({{name.split(".")[0] for name in sys.modules}} & set({WEB_AND_DATABASE + TRAINING_STACK!r}))))
"""
    assert in_fresh_interpreter(program).strip() == ""


def test_the_command_line_starts_without_loading_the_studio() -> None:
    """`studio --help` answers at once: what a command needs is imported by the command."""
    program = (
        "import sys, backend.cli; print([m for m in ('sqlalchemy', 'fastapi', 'torch', 'celery') if m in sys.modules])"
    )
    assert in_fresh_interpreter(program).strip() == "[]"
