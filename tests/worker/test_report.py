import json
import math
import signal
from pathlib import Path

import pytest

from backend.runs.events import EVENT, Note
from worker.report import Report, SpecCannotWork, Stop, StopRequested


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_is_a_line_that_can_be_read_back(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with Report(path) as report:
        report.say(Note(text="two\nlines, ü and \u2028"))
        report.metrics(3, {"loss": math.nan, "up": math.inf, "down": -math.inf, "epoch": 1.0, "train_runtime": 2.0})
        report.metrics(4, {"epoch": 1.0})
    raw = path.read_bytes().split(b"\n")[:-1]
    assert len(raw) == 2
    assert EVENT.validate_json(raw[0]).text == "two\nlines, ü and \u2028"
    assert EVENT.validate_json(raw[1]).values == {"loss": "nan", "up": "inf", "down": "-inf"}


def test_pairs_that_are_all_tied_are_a_coin(tmp_path: Path) -> None:
    with Report(tmp_path / "events.jsonl") as report:
        report.metrics(0, {"eval_rewards/accuracies": 0.0, "eval_rewards/margins": 0.0})
        report.metrics(1, {"rewards/accuracies": 0.0, "rewards/margins": 0})
        report.metrics(2, {"rewards/accuracies": 0.0, "rewards/margins": -0.2})
    assert [next(iter(line["values"].values())) for line in lines(tmp_path / "events.jsonl")] == [0.5, 0.5, 0.0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("half", [b'{"kind":"no', b'{"kind":"' + b"x" * 200_000])
def test_a_half_line_of_a_killed_attempt_is_removed(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "events.jsonl"
    for before in (b"", b'{"kind":"note","text":"whole"}\n'):
        path.write_bytes(before + half)
        with Report(path) as report:
            report.say(Note(text="next"))
        assert path.read_bytes().startswith(before + b'{"at"')
        assert lines(path)[-1]["text"] == "next"


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:7]))
    with Report(tmp_path / "events.jsonl") as report:
        report.say(Note(text="a sentence longer than seven bytes"))
    assert lines(tmp_path / "events.jsonl")[0]["text"] == "a sentence longer than seven bytes"


def test_stopping_breaks_off_until_there_is_something_to_save() -> None:
    stop = Stop()
    with pytest.raises(StopRequested):
        stop(signal.SIGTERM, None)
    with pytest.raises(StopRequested):
        stop.save_first()
    later = Stop()
    later.save_first()
    assert not later.requested
    later(signal.SIGTERM, None)
    assert later.requested


def test_a_spec_that_cannot_work_names_field_and_remedy() -> None:
    event = SpecCannotWork("too long", remedy="Lower it.", field="max_length").event("trace")
    assert (event.reason, event.remedy, event.trace) == ("max_length: too long", "Lower it.", "trace")
