"""Every attack and every cheat, on every tier that works here, as root (which becomes somebody else) and as an ordinary user."""

import contextlib
import os
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.worker.sandbox.conftest import ORDINARY, running, start, told
from tests.worker.sandbox.driver import ANSWERS, CHEATS, HONEST, NOT_BARE
from worker.sandbox import cage
from worker.sandbox.attacks import ATTACKS
from worker.sandbox.cage import Cage, RunsAsRoot
from worker.sandbox.limits import Limits

pytestmark = pytest.mark.slow


@cache
def suite(whom: str, tier: str) -> Any:
    return told(whom, "suite", tier)


@pytest.mark.parametrize("whom", ["me", "ordinary"])
class TestSuite:
    def test_every_attack_is_contained(self, whom: str, tier: str) -> None:
        said = suite(whom, tier)
        assert said["escaped"] == {}
        assert said["report"]["tier"] == tier
        assert said["report"]["user"] != 0

    def test_every_honest_program_passes(self, whom: str, tier: str) -> None:
        said = suite(whom, tier)
        assert said["honest"] == {}
        honest = {(form, name): kind for form, name, kind, *_ in said["graded"] if name in HONEST}
        assert len(honest) == len(ANSWERS) * len(HONEST)
        assert set(honest.values()) == {"ok"}

    def test_no_cheat_is_paid_and_none_is_taken_for_the_machines_fault(self, whom: str, tier: str) -> None:
        cheats = [line for line in suite(whom, tier)["graded"] if line[1] in CHEATS]
        assert len(cheats) == len(ANSWERS) * len(CHEATS)
        assert [line for line in cheats if line[2] in ("ok", "infra_error") or line[3] == line[4]] == []

    def test_nothing_is_left_running(self, whom: str, tier: str) -> None:
        suite(whom, tier)
        if whom == "ordinary":
            assert running(range(ORDINARY, ORDINARY + 1)) == []

    def test_nothing_survives_a_killed_recipe(self, whom: str, tier: str) -> None:
        """Kill -9 of the process that holds the sandbox, with one program that loops and one that sleeps."""
        process = start(whom, "hang", tier)
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        try:
            give_up = time.monotonic() + 20
            while len(mine := _family(process.pid)) < 5 and time.monotonic() < give_up:
                time.sleep(0.05)
            time.sleep(0.5)
            mine = _family(process.pid)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        assert len(mine) >= 5  # itself, two slots, two programs
        give_up = time.monotonic() + 10
        while any(map(_lives, mine)) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert [pid for pid in mine if _lives(pid)] == []


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _family(pid: int) -> list[int]:
    """*pid* and everything it started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):  # each thread lists what it started
            with contextlib.suppress(OSError):
                found += map(int, task.read_text().split())
    return found


def test_the_attacks_succeed_without_a_sandbox() -> None:
    """A check that cannot fail shows nothing: as an ordinary user, bare, every attack gets what it wants."""
    bare = told("ordinary" if os.geteuid() == 0 else "me", "bare")
    assert set(bare) == {attack.name for attack in ATTACKS} - set(NOT_BARE)
    assert [name for name, escaped in bare.items() if not escaped] == []


def test_there_are_at_least_thirty_attacks_and_thirteen_of_them_at_every_start() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 30
    assert sum(attack.at_start for attack in ATTACKS) >= 13


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused as root")
def test_root_never_starts_a_program() -> None:
    from worker.sandbox.interpreter import find

    for tier in cage.TIERS:
        with pytest.raises(RunsAsRoot):
            Cage(tier, find(), Limits())


class TestRefusal:
    """Machines that lack something, made of this one."""

    NO_NAMESPACES = (
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "--unshare-user",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--disable-userns",
    )
    NO_BUBBLEWRAP = (
        "bwrap",
        "--dev-bind",
        "/",
        "/",
        "--unshare-user",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--ro-bind",
        "/dev/null",
        "/usr/bin/bwrap",
    )

    @pytest.fixture(autouse=True)
    def _needs_bubblewrap(self) -> None:
        trial = subprocess.run([*self.NO_NAMESPACES, "true"], capture_output=True, text=True) if _has_bwrap() else None
        if trial is None or trial.returncode:
            pytest.skip("the machine that lacks something is made with bubblewrap, which does not work here")

    def whom(self) -> str:
        return "ordinary" if os.geteuid() == 0 else "me"

    def test_without_namespaces_the_second_tier_is_taken_and_says_why(self) -> None:
        said = told(self.whom(), "open", before=self.NO_NAMESPACES)
        assert said["tier"] == "landlock"
        assert "bwrap" in said["passed_over"]["bubblewrap"]

    def test_without_bubblewrap_the_second_tier_is_taken_and_says_why(self) -> None:
        said = told(self.whom(), "open", before=self.NO_BUBBLEWRAP)
        assert said == {"tier": "landlock", "passed_over": {"bubblewrap": "bwrap is not installed"}}

    def test_without_either_programs_are_refused_with_the_remedy(self) -> None:
        said = told(self.whom(), "open", "landlock-off", before=self.NO_BUBBLEWRAP)
        assert said["tier"] is None
        assert "bubblewrap: bwrap is not installed; landlock: landlock is missing in this kernel" in said["reason"]
        assert "apt install bubblewrap" in said["remedy"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="the tests are run by an ordinary user already")
    def test_a_root_that_cannot_become_somebody_else_is_refused(self) -> None:
        said = told("ordinary", "open", before=("unshare", "--user", "--map-root-user"))
        assert said["tier"] is None
        assert "never run as root" in said["reason"]
        assert said["remedy"] == "Start the worker as an ordinary user."


def _has_bwrap() -> bool:
    from worker.sandbox.bubblewrap import binary

    return binary() is not None
