"""The self-test as the keeper of a worker does it, with a process that says what the test wants."""

import json
import sys
import time

import pytest

from worker.sandbox import trial
from worker.sandbox.trial import EVERY_SECONDS, LONGEST_SECONDS, Trial


def says(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Every self-test is Python's *code* instead; what was started."""
    started: list[list[str]] = []
    real = trial.subprocess.Popen

    def start(command: list[str], **more: object) -> object:
        started.append(command)
        return real([sys.executable, "-c", code], **more)  # type: ignore[call-overload]

    monkeypatch.setattr(trial.subprocess, "Popen", start)
    return started


def until_told(tried: Trial, now: float) -> None:
    give_up = time.monotonic() + 30
    while not tried.turn(now):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_is_tried_at_the_start_and_every_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    started = says(monkeypatch, 'print(\'{"tier": "landlock"}\')')
    tried = Trial()
    assert not tried.turn(100.0)
    assert tried.report is None  # nobody waits for it
    until_told(tried, 101.0)
    assert tried.report == {"tier": "landlock"}
    assert not tried.turn(100.0 + EVERY_SECONDS - 1)
    assert len(started) == 1
    assert not tried.turn(100.0 + EVERY_SECONDS)
    assert [command[1:] for command in started] == [["-m", "worker.sandbox"]] * 2
    tried.end()


@pytest.mark.parametrize("code", ["print('?')", "import os; os._exit(9)", "print([1])"])
def test_a_self_test_that_says_nothing_is_no_sandbox(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    says(monkeypatch, code)
    tried = Trial()
    tried.turn(0.0)
    until_told(tried, 1.0)
    assert tried.report is not None
    assert tried.report["tier"] is None
    assert tried.report["remedy"]


def test_one_that_hangs_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "import time; time.sleep(60)")
    tried = Trial()
    tried.turn(0.0)
    assert not tried.turn(LONGEST_SECONDS - 1)
    began = time.monotonic()
    assert tried.turn(LONGEST_SECONDS)
    assert time.monotonic() - began < 10
    assert tried.report is not None
    assert tried.report["tier"] is None


def test_the_command_reports_in_json(capfd: pytest.CaptureFixture[str]) -> None:
    from worker.sandbox.__main__ import main

    code = main([])
    said = json.loads(capfd.readouterr().out)
    assert (code == 0) == (said["tier"] is not None)
    if code:
        assert said["reason"]
        assert said["remedy"]
    else:
        assert said["user"] != 0
        assert said["attacks"] >= 13
        assert said["honest"] == 3
