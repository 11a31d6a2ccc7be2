"""What is remembered between starts: ports, password, address, and the processes that a killed supervisor left running."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backend import embedded
from backend.supervisor.child import CannotStart

WEB_PORT = 8400
PORTS_TRIED = 100


@dataclass
class Memory:
    """Ports, password and process ids of this home, in a file that only its owner reads."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def of(cls, home: Path) -> "Memory":
        """What an earlier ``up`` left in *home*, or a new password."""
        path = home / "state.json"
        content: dict[str, Any] = {}
        with contextlib.suppress(OSError, json.JSONDecodeError):
            content = json.loads(path.read_text())
        content.setdefault("password", secrets.token_urlsafe(24))
        return cls(path, content)

    def save(self) -> None:
        """Write it as a whole or not at all."""
        new = self.path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps(self.content, indent=1))
        new.replace(self.path)

    def port(self, name: str) -> int:
        """The port that *name* had last time if nobody took it meanwhile, else a free one."""
        port = self.content.get(name)
        if not isinstance(port, int) or not is_free("127.0.0.1", port):
            port = embedded.free_port()
        self.content[name] = port
        return port


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on *host*:*port* now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def choose_web_port(host: str, wanted: int | None, last: int | None) -> int:
    """*wanted* or nothing; else last time's; else the first free one from 8400 on."""
    if wanted is not None:
        if not is_free(host, wanted):
            raise CannotStart(f"Port {wanted} is taken. Leave --port out and a free one is found.")
        return wanted
    candidates = [*([last] if last else []), *range(WEB_PORT, WEB_PORT + PORTS_TRIED)]
    return next((port for port in candidates if is_free(host, port)), 0) or embedded.free_port()


def command_line(pid: int) -> str:
    """The command of process *pid* as the system tells it; empty if there is no such process."""
    if Path("/proc/self/cmdline").exists():
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return ""
    return subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


def end_leftovers(memory: Memory, postgres_data: Path, say: Callable[[str], None]) -> None:
    """End what an earlier supervisor left running: two servers on the same files would destroy them.

    A process is ours if it still has the command line that was written down when it was started.
    """
    left = {name: (int(pid), str(command)) for name, (pid, command) in memory.content.get("processes", {}).items()}
    pid_file = postgres_data / "postmaster.pid"
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(pid_file.read_text().split()[0])
        command = command_line(pid)
        if str(postgres_data) in command:
            left["Postgres"] = (pid, command)
        elif command:
            pid_file.unlink()  # the number went to another process since; Postgres would refuse to start
    alive = {name: pid for name, (pid, command) in left.items() if command and command_line(pid) == command}
    for name, pid in alive.items():
        say(f"{name} of an earlier start still runs and is ended")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT if name == "Postgres" else signal.SIGTERM)
    deadline = time.monotonic() + 15
    while alive and time.monotonic() < deadline:
        alive = {name: pid for name, pid in alive.items() if command_line(pid) == left[name][1]}
        time.sleep(0.05)
    for pid in alive.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
