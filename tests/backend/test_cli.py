"""The command line against a real web: signing in, what it remembers, how it says no."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import embedded
from backend.accounts.actors import Actor
from backend.cli.projects import in_options
from backend.db import Sessions
from backend.demo import seed
from backend.projects.service import ProjectName
from backend.settings import Settings
from tests.conftest import PASSWORD

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def studio(tmp_path: Path, database_url: str) -> Run:
    """The ``studio`` command in an environment of its own."""
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "STUDIO_HOME": str(tmp_path / "none"),
        "DATABASE_URL": database_url,
    }

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "backend.cli", *arguments]
        return subprocess.run(command, env=env | more, capture_output=True, text=True, timeout=60)

    return run


def test_login_remembers_a_token_that_only_the_owner_reads_and_logout_revokes_it(
    studio: Run, served: str, admin: Actor, tmp_path: Path
) -> None:
    done = studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD=PASSWORD)
    assert done.returncode == 0, done.stderr
    assert "as Ada" in done.stdout
    remembered = tmp_path / ".config" / "alignment-studio" / "credentials.json"
    assert remembered.stat().st_mode & 0o777 == 0o600
    token = json.loads(remembered.read_text())["token"]
    assert studio("whoami").stdout.startswith("Ada at")
    assert studio("logout").returncode == 0
    again = studio("whoami", STUDIO_URL=served, STUDIO_TOKEN=token)
    assert (again.returncode, "login" in again.stderr) == (3, True)


def test_refusals_are_sentences_with_exit_codes(studio: Run, served: str, admin: Actor) -> None:
    wrong = studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD="not the password")
    assert (wrong.returncode, "wrong" in wrong.stderr, "Traceback" in wrong.stderr) == (3, True, False)
    stranger = studio("projects", "list")
    assert (stranger.returncode, "studio login" in stranger.stderr) == (3, True)
    nobody = studio("projects", "list", STUDIO_URL=f"http://127.0.0.1:{embedded.free_port()}", STUDIO_TOKEN="sts_x")
    assert (nobody.returncode, "No studio answers" in nobody.stderr) == (5, True)
    assert studio("nonsense").returncode == 2


def test_projects_are_made_and_found_by_name(studio: Run, served: str, admin: Actor, project: ProjectName) -> None:
    studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD=PASSWORD)
    assert "Project" in studio("projects", "create", "Tone", "--goal", "Kind answers").stdout
    assert {one["name"] for one in json.loads(studio("projects", "list", "--json").stdout)} == {
        "Tone",
        "Sums and support",
    }
    taken = studio("projects", "create", "Tone")
    assert (taken.returncode, "Choose another name" in taken.stderr) == (1, True)
    unsaid = studio("datasets", "list")
    assert (unsaid.returncode, "Tone" in unsaid.stderr) == (2, True)


def test_the_setup_link_comes_from_the_console(studio: Run, admin: Actor) -> None:
    exists = studio("admin", "create-link")
    assert (exists.returncode, "An admin exists" in exists.stderr) == (1, True)
    rescue = studio("admin", "create-link", "--email", "ada@example.org")
    assert "/setup/" in rescue.stdout


def test_the_first_setup_link_comes_from_the_console(studio: Run) -> None:
    assert "/setup/" in studio("admin", "create-link").stdout


def test_a_spec_that_is_none_is_refused_before_it_is_sent(studio: Run, tmp_path: Path) -> None:
    for name, text in {"list.yaml": "- 1", "broken.yaml": "a: [1", "binary.yaml": "\udcff"}.items():
        path = tmp_path / name
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        done = studio("runs", "submit", str(path), STUDIO_URL="http://127.0.0.1:9", STUDIO_TOKEN="sts_x")
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


def test_a_run_is_submitted_seen_cancelled_and_its_end_is_the_exit_code(
    studio: Run, served: str, admin: Actor, sessions: Sessions, settings: Settings, tmp_path: Path
) -> None:
    seed.ensure(sessions, settings)
    studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD=PASSWORD)
    (model,) = json.loads(studio("models", "list", "--json").stdout)
    datasets = json.loads(studio("datasets", "list", "--json").stdout)
    version = next(one["newest"]["id"] for one in datasets if one["newest"]["row_type"] == "preference")
    spec = tmp_path / "dpo.yaml"
    spec.write_text(f"method: dpo\nbase_model: {model['id']}\ndataset: {version}\noptimization:\n  steps: 30\n")
    wrong = studio("runs", "submit", str(spec), "--set", "optimization.stepz=3")
    assert (wrong.returncode, "optimization.stepz" in wrong.stderr) == (1, True), wrong.stderr
    ids = set()
    for _ in range(2):
        done = studio("runs", "submit", str(spec), "--set", "beta=0.3", "--idempotency-key", "once", "--json")
        run = json.loads(done.stdout)
        ids.add(run["id"])
        assert (run["state"], run["spec"]["beta"], run["spec"]["optimization"]["steps"]) == ("queued", 0.3, 30)
    assert len(ids) == 1
    assert "queued" in studio("runs", "list").stdout
    assert f"#{run['id']} is cancelled" in studio("runs", "cancel", str(run["id"])).stdout.replace("Run ", "")
    watched = studio("runs", "watch", str(run["id"]))
    assert (watched.returncode, "cancelled" in watched.stdout) == (1, True), watched.stderr
    assert '"beta": 0.3' in studio("runs", "show", str(run["id"])).stdout
    assert studio("runs", "show", "987654321").returncode == 4
    assert studio("workers").stdout == "none yet\n"


def test_a_file_becomes_a_version_and_a_bad_row_leaves_nothing(
    studio: Run, served: str, admin: Actor, project: ProjectName, tmp_path: Path
) -> None:
    studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD=PASSWORD)
    good = tmp_path / "pairs.jsonl"
    rows = [{"question": f"{n} + 1?", "good": str(n + 1), "bad": "no idea"} for n in range(3)]
    good.write_text("\n".join(json.dumps(row) for row in rows))
    maps = ["--map", "prompt=question", "--map", "chosen=good", "--map", "rejected=bad"]
    done = studio("datasets", "import", str(good), *maps)
    assert (done.returncode, "3 preference rows" in done.stdout) == (0, True), done.stderr
    (listed,) = json.loads(studio("datasets", "list", "--json").stdout)
    assert (listed["name"], listed["newest"]["row_count"]) == ("pairs", 3)
    to = tmp_path / "back.jsonl"
    assert studio("datasets", "download", str(listed["newest"]["id"]), "--to", str(to)).returncode == 0
    assert [json.loads(line)["chosen"] for line in to.read_text().splitlines()] == ["1", "2", "3"]

    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text() + '\n{"question": "broken"')
    refused = studio("datasets", "import", str(bad), "--name", "another", *maps)
    assert (refused.returncode, "line 4" in refused.stderr) == (1, True), refused.stderr
    assert len(json.loads(studio("datasets", "list", "--json").stdout)) == 1
    assert studio("datasets", "import", str(good), "--map", "question").returncode == 2
    wrong_kind = studio("datasets", "import", str(good), "--type", "unpaired")
    assert (wrong_kind.returncode, "question, good, bad" in wrong_kind.stderr) == (1, True), wrong_kind.stderr
    assert "--map prompt=question" in wrong_kind.stderr


def test_an_import_says_what_it_read_and_what_it_left_out(
    studio: Run, served: str, admin: Actor, project: ProjectName, tmp_path: Path
) -> None:
    studio("login", served, "--email", "ada@example.org", STUDIO_PASSWORD=PASSWORD)
    file = tmp_path / "sides.jsonl"
    rows = [{"prompt": f"{n}?", "output_1": "a", "output_2": "b", "label": n % 3} for n in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)))
    guessed = studio("datasets", "import", str(file))
    assert "prompt ← prompt · chosen ← output_1 · rejected ← output_2 · winner ← label" in guessed.stdout, (
        guessed.stderr
    )
    assert "Left out: 2 of 6 rows (neither side won; --ties half keeps them)" in guessed.stdout
    kept = studio("datasets", "import", str(file), "--ties", "half")
    assert ("6 preference rows" in kept.stdout, "Left out" in kept.stdout) == (True, False), kept.stderr
    maps = ["--map", "prompt=prompt", "--map", "completion=output_1"]
    assert studio("datasets", "import", str(file), *maps, "--ties", "half").returncode == 2


@pytest.mark.parametrize(
    ("problem", "translated"),
    [
        ({"field": "mapping", "remedy": "Send a mapping."}, True),
        ({"field": "prompt", "remedy": "Map a prompt column, or leave such rows out."}, True),
        ({"field": "mapping.row_type", "remedy": "The API reference describes the mapping."}, True),
        ({"field": "name", "remedy": "Choose another name."}, False),
    ],
)
def test_a_refused_mapping_is_mended_with_options(problem: dict[str, str], translated: bool) -> None:
    remedy = in_options(problem)["remedy"]
    assert ("--map" in remedy and "--type" in remedy) is translated
    assert (remedy == problem["remedy"]) is not translated
