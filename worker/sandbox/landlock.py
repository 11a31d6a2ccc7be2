"""Landlock: a process gives up every file, port and neighbor it was not handed. Needs no privilege; Linux 5.13 or later.

What it does not cover (``chmod``, ``utime``, ``truncate`` before ABI 3, sockets before ABI 4, signals before ABI 6, ``stat`` and
``chdir``) is closed by the filter of :mod:`worker.sandbox.seccomp`; only ``stat`` and ``chdir`` remain: a program can learn that a
path exists, not what is in it.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15

_FILE_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""Every right over files that an ABI knows; what is handled and not granted is refused."""
_OF_ONE_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def abi() -> int:
    """The kernel's version of landlock; 0 where it is missing or switched off."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, 0, 1)))


def _checked(answer: int, what: str) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"landlock: {what}: {os.strerror(ctypes.get_errno())}")
    return answer


def restrict(listed: Iterable[str], readable: Iterable[str], devices: Iterable[str], folder: str) -> None:
    """Leave this process *listed* (names in folders), *readable* (to read and execute), *devices* (to read and write), *folder* (all)."""
    version = abi()
    if not version:
        raise OSError("landlock is missing in this kernel or switched off")
    every = _FILE_RIGHTS[min(version, 5)]
    ports = 3 if version >= 4 else 0  # bind and connect over TCP: none is granted
    scopes = 3 if version >= 6 else 0  # abstract sockets and signals: not beyond this process and its children
    rules = struct.pack("=QQQ", every, ports, scopes)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _checked(_libc.syscall(CREATE_RULESET, ctypes.c_char_p(rules), len(rules), 0), "create ruleset")

    def grant(path: str, rights: int) -> None:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                rights &= _OF_ONE_FILE
            rule = struct.pack("=Qi", rights & every, handle)
            _checked(_libc.syscall(ADD_RULE, ruleset, 1, ctypes.c_char_p(rule), 0), f"add {path}")
        finally:
            os.close(handle)

    try:
        for path in listed:
            grant(path, READ_DIR)
        for path in readable:
            grant(path, EXECUTE | READ_FILE | READ_DIR)
        for path in devices:
            grant(path, READ_FILE | WRITE_FILE)
        grant(folder, every)
        if _libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
            raise OSError(ctypes.get_errno(), "no_new_privs is refused")
        _checked(_libc.syscall(RESTRICT_SELF, ruleset, 0), "restrict")
    finally:
        os.close(ruleset)
