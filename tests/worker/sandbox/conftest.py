"""The sandbox under test as two users: as whoever runs the tests, and, if that is root, as an ordinary user too."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from worker.sandbox import Sandbox, SandboxUnavailable
from worker.sandbox.cage import TIERS

ROOT = Path(__file__).resolve().parents[3]
DRIVER = Path(__file__).with_name("driver.py")
ORDINARY = 60900
"""A user that runs nothing else."""
SYSTEM_PYTHON = "/usr/bin/python3"


@cache
def copied() -> Path:
    """The sandbox's code where everybody may read it: the checkout may be somebody's own."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-tests-"))
    (folder / "worker").mkdir()
    (folder / "worker" / "__init__.py").touch()
    shutil.copytree(
        ROOT / "worker" / "sandbox", folder / "worker" / "sandbox", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(DRIVER, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_copy_left() -> Iterator[None]:
    # Not of the package: with several test processes a package may be left and entered again, with the copy gone.
    yield
    if copied.cache_info().currsize:
        shutil.rmtree(copied())


def start(whom: str, *arguments: str, before: tuple[str, ...] = (), **more: Any) -> subprocess.Popen[str]:
    """The driver as *whom*: ``me`` (whoever runs the tests) or ``ordinary`` (needs root to become that)."""
    if whom == "me":
        command, user, folder = [sys.executable, str(DRIVER)], {}, ROOT
    else:
        if os.geteuid() != 0:
            pytest.skip("the tests are run by an ordinary user already")
        version = (
            subprocess.run(
                [SYSTEM_PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True
            )
            if os.path.exists(SYSTEM_PYTHON)
            else None
        )
        if version is None or version.stdout != "True\n":
            pytest.skip(f"another user may need {SYSTEM_PYTHON} of version 3.11 or later, which is not there")
        command, folder = [SYSTEM_PYTHON, "driver.py"], copied()
        user = {"user": ORDINARY, "group": ORDINARY, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "SECRET_TOKEN": "secret", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*before, *command, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, **user, **more
    )


def told(whom: str, *arguments: str, before: tuple[str, ...] = ()) -> Any:
    """What the driver says."""
    process = start(whom, *arguments, before=before)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return json.loads(out)


@cache
def works(tier: str) -> str:
    """Empty if *tier* can work here, else the reason."""
    try:
        Sandbox.open([tier], size=1).close()  # type: ignore[list-item]
    except SandboxUnavailable as error:
        # A tier that starts but does not hold is a failure of the sandbox, never a reason to skip.
        if "does not hold" not in str(error):
            return str(error)
    return ""


@pytest.fixture(scope="session", params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    if why := works(request.param):
        pytest.skip(why)
    return str(request.param)


@pytest.fixture(scope="session")
def sandbox(tier: str) -> Iterator[Sandbox]:
    with Sandbox.open([tier], size=2) as opened:  # type: ignore[list-item]
        yield opened


def running(users: range) -> list[str]:
    """Command lines of every process that one of *users* has; what has ended and waits for init to notice runs no more."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                ended = (folder / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
                if folder.stat().st_uid in users and not ended:
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200])
            except OSError:
                continue
    return found
