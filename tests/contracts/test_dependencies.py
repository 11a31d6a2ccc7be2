"""What the code imports is declared, and what is declared is pinned: an image installs only what its extra names."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(requirements: list[str]) -> dict[str, str]:
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)(?:; .*)?", requirement)
        assert match is not None, f"{requirement} is not pinned to one version"
        found[normal(match[1])] = match[2]
    return found


def imported(folder: Path) -> dict[str, str]:
    """Top-level names of everything from outside that the folder's modules import, with one file that does."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in names:
                found[name.split(".")[0]] = str(path.relative_to(ROOT))
    ours = {"backend", "worker", "tests", "migrations"}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names and name not in ours}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("backend", ["backend", "embedded"]),
        ("migrations", []),
        ("worker", ["worker"]),
        ("tests", ["backend", "embedded", "worker", "dev"]),
    ],
)
def test_every_import_is_declared_where_it_is_needed(folder: str, extras: list[str]) -> None:
    declared = set(pins(PROJECT["dependencies"]))
    for extra in extras:
        declared |= set(pins(EXTRAS[extra]))
    distributions = packages_distributions()
    missing = {
        f"{name} (in {path})"
        for name, path in imported(ROOT / folder).items()
        if not {normal(distribution) for distribution in distributions.get(name, [])} & declared
    }
    assert missing == set()


@pytest.mark.parametrize(
    ("extra", "others", "modules"),
    [
        (
            "worker",
            ("backend", "embedded", "dev"),
            ("worker.tasks", "worker.keeper", "worker.process", "worker.recipes.__main__"),
        ),
        ("backend", ("worker", "embedded", "dev"), ("backend.app", "backend.cli", "backend.migrate")),
    ],
)
def test_an_image_can_start_with_its_own_extra_alone(
    extra: str, others: tuple[str, ...], modules: tuple[str, ...]
) -> None:
    """Imports go on from part to part: what one of them needs must be in the image, not only what is named at its top."""
    has = set(pins(PROJECT["dependencies"])) | set(pins(EXTRAS[extra]))
    lacks = {name for other in others for name in pins(EXTRAS[other])} - has
    absent = [name for name, owners in packages_distributions().items() if {normal(one) for one in owners} & lacks]
    assert absent
    program = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({absent!r}))
for module in {modules!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_pins_of_the_project_and_of_the_constraints_agree() -> None:
    constraints = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            constraints[normal(name)] = version
    everything = pins([*PROJECT["dependencies"], *(pin for extra in EXTRAS.values() for pin in extra)])
    everything.pop("torch")  # its build differs by machine, so nothing constrains it but the pin
    assert {name: constraints.get(name) for name in everything} == everything
