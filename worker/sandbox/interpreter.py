"""The Python that programs run on, and the least it needs of this machine: its binary, its standard library, shared libraries.

No site-packages: what is installed beside the studio is neither readable nor importable. The interpreter is the worker's own where
the sandbox's user may read it (an installation under somebody's home may be closed to others), else the system's.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

OLDEST = (3, 10)
SEARCHED = ("/usr/bin/python3", "/usr/local/bin/python3", "/opt/bin/python3")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program gets the same verdict twice
    "PYTHONDONTWRITEBYTECODE": "1",
}
FLAGS = ["-s", "-S", "-B"]
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

_ASK = """
import json, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps({
    "binary": sys.executable, "version": list(sys.version_info[:3]), "folders": [paths["stdlib"], paths["platstdlib"]],
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python and every path it needs."""

    binary: str
    version: str
    folders: tuple[str, ...]
    """The standard library."""
    files: tuple[str, ...]
    """The binary and shared libraries, under the names they are looked for."""
    hidden: tuple[str, ...]
    """Folders within *folders* that stay closed: packages."""

    def plain(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Self:
        """From the wire."""
        return cls(plain["binary"], plain["version"], *(tuple(plain[key]) for key in ("folders", "files", "hidden")))

    @cached_property
    def readable(self) -> list[str]:
        """Everything there is, without the packages: what landlock grants."""
        open_paths = list(self.files)
        for folder in self.folders:
            within = [path for path in self.hidden if path.startswith(folder + "/")]
            # A rule on a folder holds for all below it, so a folder that hides something is granted entry by entry.
            open_paths += [e.path for e in os.scandir(folder) if e.path not in within] if within else [folder]
        return open_paths


def _libraries(paths: list[str]) -> set[str]:
    """Shared libraries that *paths* load, and the loader, by ``ldd``; with the cache that says where libraries are."""
    answer = subprocess.run(["ldd", *paths], capture_output=True, text=True, timeout=30, check=False).stdout
    found = set(re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", answer, re.MULTILINE))
    return found | {path for path in ("/etc/ld.so.cache",) if os.path.exists(path)}


def _look(binary: str) -> Interpreter:
    """What the interpreter at *binary* needs. Raises ``OSError`` or ``ValueError`` if it is none for us."""
    told = subprocess.run(
        [binary, *FLAGS, "-c", _ASK], capture_output=True, text=True, timeout=20, check=True, env=ENVIRONMENT
    )
    answer = json.loads(told.stdout)
    if tuple(answer["version"][:2]) < OLDEST:
        raise ValueError(f"Python {'.'.join(map(str, answer['version']))} is too old")
    folders = sorted({os.path.realpath(folder) for folder in answer["folders"]})
    named = sorted(set(answer["folders"]))
    binary = os.path.realpath(answer["binary"])
    extensions = [str(path) for folder in folders for path in Path(folder).glob("lib-dynload/*.so")]
    files = {binary, *_libraries([binary, *extensions])}
    hidden = [os.path.join(folder, name) for folder in named for name in ("site-packages", "dist-packages", "test")]
    return Interpreter(
        binary,
        ".".join(map(str, answer["version"])),
        tuple(named),
        tuple(sorted(files)),
        tuple(path for path in hidden if os.path.isdir(path)),
    )


def find() -> Interpreter:
    """The first interpreter that this user may read and run. Raises ``FileNotFoundError`` naming what was tried."""
    failures = []
    own = os.path.realpath(sys.executable)
    for binary in dict.fromkeys([own, *SEARCHED]):
        if not os.path.exists(binary):
            failures.append(f"{binary} is not there or not readable")
            continue
        try:
            return _look(binary)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            failures.append(f"{binary}: {error}")
    raise FileNotFoundError(f"no Python that user {os.getuid()} may run ({'; '.join(failures)})")
