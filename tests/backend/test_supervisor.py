"""`studio up`, with real processes: what starts, what comes back, what stops, and that nothing is left behind."""

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from backend import embedded, supervisor
from backend.supervisor.child import CannotStart, Child, rotate
from backend.supervisor.memory import Memory, choose_web_port, end_leftovers

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    embedded.wait_until(lambda: bool(condition()), what, seconds)


def valkey(folder: Path, said: list[str]) -> Child:
    port = embedded.free_port()
    return Child(
        "Valkey",
        embedded.valkey_command(folder / "valkey", port, "secret"),
        folder / "valkey.log",
        lambda: embedded.redis_answers(f"redis://:secret@127.0.0.1:{port}/0"),
        say=said.append,
    )


# --- one process


def run(story: Coroutine[Any, Any, T]) -> T:
    """Run *story* in a thread of its own: in this one a browser test may have left its event loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, story).result()


def test_a_killed_process_is_started_again_and_a_stopped_one_is_not(tmp_path: Path) -> None:
    said: list[str] = []
    child = valkey(tmp_path, said)

    async def story() -> tuple[int, int]:
        await child.start()
        watching = asyncio.create_task(child.watch())
        assert child.process is not None
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(30):
            while "Valkey is back" not in said:
                await asyncio.sleep(0.02)
        second = child.process.pid
        assert child.is_ready()
        await child.stop()
        await watching
        return first, second

    first, second = run(story())
    assert first != second
    assert not psutil.pid_exists(second)
    assert any("ended (SIGKILL)" in sentence for sentence in said)


def test_a_process_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.supervisor.child.STARTS_BEFORE_GIVING_UP", 2)
    command = [sys.executable, "-c", "import sys; sys.exit('the disk is full')"]
    child = Child("web", command, tmp_path / "web.log", lambda: False)
    with pytest.raises(CannotStart, match=r"web does not start.\n(.*\n)*    the disk is full"):
        run(child.start())
    assert (tmp_path / "web.log").read_text().count("the disk is full") == 2


def test_a_process_that_ignores_the_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        "print(child.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "stubborn.log"
    child = Child(
        "stubborn", [sys.executable, "-c", program], log, lambda: log.read_text().strip() != "", stop_seconds=0.2
    )

    async def story() -> None:
        await child.start()
        await child.stop()

    run(story())
    grandchild = int(log.read_text())
    wait_for(lambda: not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == "zombie", "the end")


# --- memory and ports


def test_memory_is_private_and_survives_nonsense(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path)
    memory.save()
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600
    assert Memory.of(tmp_path).content["password"] == memory.content["password"]
    (tmp_path / "state.json").write_text("{half a fi")
    assert Memory.of(tmp_path).content["password"] not in ("", memory.content["password"])


def test_a_port_is_kept_until_somebody_else_takes_it(tmp_path: Path) -> None:
    memory = Memory.of(tmp_path)
    port = memory.port("postgres")
    assert memory.port("postgres") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert memory.port("postgres") != port


def test_the_web_steps_around_a_taken_port_but_not_around_a_wanted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr("backend.supervisor.memory.WEB_PORT", taken)
        assert taken < choose_web_port("127.0.0.1", None, None) or taken > 65_400
        assert choose_web_port("127.0.0.1", None, taken) != taken
        with pytest.raises(CannotStart, match=f"Port {taken} is taken"):
            choose_web_port("127.0.0.1", taken, None)
    assert choose_web_port("127.0.0.1", taken, None) == taken


def test_a_large_log_is_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backend.supervisor.child.LOG_BYTES", 10)
    log = tmp_path / "web.log"
    log.write_text("short")
    rotate(log)
    assert log.exists()
    log.write_text("longer than ten bytes")
    rotate(log)
    assert not log.exists()
    assert (tmp_path / "web.log.1").read_text() == "longer than ten bytes"


# --- what a killed supervisor may leave where the kernel does not help


def test_servers_of_an_earlier_start_are_ended_before_new_ones_touch_their_files(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    embedded.init_postgres(data, "secret")
    port = embedded.free_port()
    left = embedded.start(embedded.postgres_command(data, port), tmp_path / "log", signal.SIGINT)
    wait_for(lambda: embedded.postgres_answers(f"postgresql://studio:secret@127.0.0.1:{port}/postgres"), "Postgres")
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        memory = Memory.of(tmp_path)
        memory.content["processes"] = {"web": [stranger.pid, "uvicorn of yesterday, whose number went to a stranger"]}
        said: list[str] = []
        end_leftovers(memory, data, said.append)
        assert left.wait(20) == 0
        assert said == ["Postgres of an earlier start still runs and is ended"]
        assert stranger.poll() is None
        assert not (data / "postmaster.pid").exists()
    finally:
        stranger.kill()
        stranger.wait()
        left.kill()


def test_a_pid_file_whose_number_went_to_a_stranger_does_not_block_postgres(tmp_path: Path) -> None:
    data = tmp_path / "postgres"
    data.mkdir()
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n")
    end_leftovers(Memory.of(tmp_path), data, print)
    assert not (data / "postmaster.pid").exists()


# --- all of it


@dataclass
class Up:
    """A running `studio up`."""

    process: subprocess.Popen[str]
    home: Path
    output: Path

    def said(self) -> str:
        return self.output.read_text()

    def family(self) -> list[psutil.Process]:
        """Every process that was started by the studio of this home, however deep."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("STUDIO_HOME") == str(self.home) and process.status() != "zombie":
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.pid != self.process.pid]

    def address(self) -> str:
        return str(json.loads((self.home / "state.json").read_text())["address"])

    def is_healthy(self) -> bool:
        return supervisor._http_answers(f"{self.address()}/healthz")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    """Starts a studio without demo; everything it started is gone after the test."""
    home = tmp_path / "a home with spaces"
    environment = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")}
    environment["STUDIO_HOME"] = str(home)
    started: list[Up] = []

    def begin() -> Up:
        output = tmp_path / f"up-{len(started)}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "backend.cli", "up", "--no-demo"],
                cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        started.append(Up(process, home, output))
        return started[-1]

    yield begin
    for up in started:
        if up.process.poll() is None:
            up.process.terminate()
            try:
                up.process.wait(60)
            except subprocess.TimeoutExpired:
                up.process.kill()
        for process in up.family():
            process.kill()


def until_up(up: Up) -> None:
    wait_for(lambda: "The studio runs at" in up.said() or up.process.poll() is not None, "studio", 120)
    assert up.process.poll() is None, up.said()


@pytest.mark.integration
@pytest.mark.slow
def test_a_studio_starts_heals_and_stops_in_order(start: Callable[[], Up]) -> None:
    up = start()
    until_up(up)
    link = re.search(r"http://127\.0\.0\.1:\d+/setup/\S+", up.said())
    assert link is not None
    with urllib.request.urlopen(link[0]) as page:
        assert page.status == 200
    for name in ("postgres", "valkey", "web", "worker", "beat"):
        assert (up.home / "logs" / f"{name}.log").exists()

    second = start()
    assert second.process.wait(30) == 0
    assert second.said().strip() == f"The studio is already running: {up.address()}"

    victims = json.loads((up.home / "state.json").read_text())["processes"]
    os.kill(victims["web"][0], signal.SIGKILL)
    os.kill(victims["Postgres"][0], signal.SIGKILL)
    wait_for(lambda: "web is back" in up.said() and "Postgres is back" in up.said(), "web and Postgres", 60)
    assert up.is_healthy()

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert up.family() == []
    assert not (up.home / "postgres" / "postmaster.pid").exists()
    assert up.said().rstrip().endswith("stopped")
    assert "did not end" not in up.said()


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children that their parent died")
def test_a_killed_supervisor_leaves_no_process_and_the_next_start_works(start: Callable[[], Up]) -> None:
    up = start()
    until_up(up)
    assert len(up.family()) >= 6
    up.process.kill()
    up.process.wait()
    began = time.monotonic()
    wait_for(lambda: not up.family(), "the end of every child", 30)
    print(f"every child was gone after {time.monotonic() - began:.1f} s")

    again = start()
    until_up(again)
    assert again.is_healthy()
    again.process.terminate()
    assert again.process.wait(60) == 0
    assert again.family() == []
