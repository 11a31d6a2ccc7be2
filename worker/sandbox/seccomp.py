"""Which system calls a program may make: a list of what Python needs, compiled to the kernel's packet filter.

Everything that is not listed answers ENOSYS, as on a kernel without that call: no sockets, no new processes (``clone``
makes threads only), no signals to anybody, no ptrace, mounts, namespaces, keys, io_uring, bpf or shared memory, and no
``chmod``, ``chown``, ``utime`` or ``truncate`` by path, which landlock does not look at. A call of another architecture (32 bit,
x32) kills the process. The filter is inherited by threads and over ``execve`` and cannot be taken off again.
"""

import ctypes
import platform
import struct
from typing import NamedTuple

# name, number on x86_64, number on aarch64 (-: the kernel has none there)
TABLE = """
# files
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
open 2 -, openat 257 56, close 3 57, close_range 436 436, creat 85 -, stat 4 -, fstat 5 80, lstat 6 -,
newfstatat 262 79, statx 332 291, lseek 8 62, access 21 -, faccessat 269 48, faccessat2 439 439, dup 32 23,
dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, getdents 78 -, getdents64 217 61, getcwd 79 17, chdir 80 49,
fchdir 81 50, readlink 89 -, readlinkat 267 78, statfs 137 43, fstatfs 138 44, fsync 74 82, fdatasync 75 83,
ftruncate 77 46, fallocate 285 47, fadvise64 221 223, flock 73 32, umask 95 166, rename 82 -, renameat 264 38,
renameat2 316 276, mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, link 86 -,
linkat 265 37, symlink 88 -, symlinkat 266 36, sendfile 40 71, copy_file_range 326 285,
# memory
brk 12 214, mmap 9 222, munmap 11 215, mprotect 10 226, mremap 25 216, madvise 28 233, mincore 27 232,
msync 26 227,
# waiting
poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20,
epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22, epoll_pwait2 441 441, eventfd 284 -, eventfd2 290 19,
nanosleep 35 101, clock_nanosleep 230 115, pause 34 -, alarm 37 -, setitimer 38 103, getitimer 36 102,
sendto 44 206, recvfrom 45 207, shutdown 48 210, timerfd_create 283 85, timerfd_settime 286 86,
timerfd_gettime 287 87,
# time
time 201 -, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, times 100 153, getrusage 98 165,
# signals
rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, rt_sigsuspend 130 133, rt_sigpending 127 136,
rt_sigtimedwait 128 137, sigaltstack 131 132, restart_syscall 219 128,
# process
execve 59 221, exit 60 93, exit_group 231 94, wait4 61 260, waitid 247 95, getpid 39 172, getppid 110 173,
gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148,
getresgid 120 150, getgroups 115 158, getpgrp 111 -, getpgid 121 155, getsid 124 156, getrlimit 97 163,
uname 63 160, sysinfo 99 179, getrandom 318 278, getpriority 140 141, getcpu 309 168, sched_yield 24 124,
sched_getaffinity 204 123, sched_getscheduler 145 120, sched_getparam 143 121, sched_get_priority_max 146 125,
sched_get_priority_min 147 126, setrlimit 160 164,
# threads
futex 202 98, futex_waitv 449 449, set_tid_address 218 96, set_robust_list 273 99, get_robust_list 274 100,
rseq 334 293, membarrier 324 283, arch_prctl 158 -,
"""


class Machine(NamedTuple):
    """An architecture as the kernel's filter sees it."""

    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""
    column: int
    """Its column in the tables here."""
    x32: bool = False
    """Whether numbers from 0x40000000 on are a second set of calls."""


MACHINES = {"x86_64": Machine(0xC000003E, 1, x32=True), "aarch64": Machine(0xC00000B7, 2)}

# Calls of which an argument is looked at: name → (x86_64, aarch64)
CLONE, CLONE3 = (56, 220), (435, 435)
IOCTL, PRCTL, PRLIMIT64, FCNTL, SOCKETPAIR = (16, 29), (157, 167), (302, 261), (72, 25), (53, 199)

THREAD_FLAGS = 0x3D0F00  # VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, PARENT_SETTID, CHILD_CLEARTID: what pthread_create asks for
"""The only flags with which ``clone`` is let through."""
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
PRCTLS = (3, 15, 16)  # PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)  # no F_SETOWN and F_SETSIG: they send signals to others

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
ALLOW, KILL, NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 38


class Unsupported(Exception):
    """There is no table for this machine."""


def _argument(index: int) -> int:
    """Offset of the lower half of an argument; both architectures are little-endian."""
    return 16 + 8 * index


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("<HBBI", code, yes, no, value)


def _one_of(index: int, values: tuple[int, ...]) -> list[bytes]:
    """Allow if argument *index* is one of *values*, else the call does not exist."""
    lines = [_instruction(_LOAD, _argument(index))]
    for value in values:
        lines += [_instruction(_EQUAL, value, 0, 1), _instruction(_RETURN, ALLOW)]
    return [*lines, _instruction(_RETURN, NO_SUCH_CALL)]


def supported() -> bool:
    """Whether there is a table for this machine."""
    return platform.machine() in MACHINES


def program(machine: str | None = None) -> bytes:
    """The filter for *machine* (default: this one), as ``seccomp(2)`` and bubblewrap take it."""
    name = platform.machine() if machine is None else machine
    found = MACHINES.get(name)
    if found is None:
        raise Unsupported(
            f"the sandbox knows the system calls of {' and '.join(MACHINES)}, this machine is {name or 'unknown'}"
        )

    lines = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_EQUAL, found.audit, 1, 0),
        _instruction(_RETURN, KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    if found.x32:
        lines += [_instruction(_AT_LEAST, 0x40000000, 0, 1), _instruction(_RETURN, KILL)]

    looked_into = {
        # Exactly a thread: CLONE_THREAD set, nothing outside the flags above, the signal at the end (lowest byte) zero.
        CLONE: [
            _instruction(_LOAD, _argument(0)),
            _instruction(_AND, 0xFFBFFFFF),  # CLONE_DETACHED means nothing any more; musl still sets it
            _instruction(_EQUAL, THREAD_FLAGS, 0, 1),
            _instruction(_RETURN, ALLOW),
            _instruction(_RETURN, NO_SUCH_CALL),
        ],
        IOCTL: _one_of(1, IOCTLS),
        PRCTL: _one_of(0, PRCTLS),
        PRLIMIT64: _one_of(0, (0,)),  # its own limits only
        FCNTL: _one_of(1, FCNTLS),
        # AF_UNIX, and a stream: a datagram socket could be pointed at others with sendto
        SOCKETPAIR: [
            _instruction(_LOAD, _argument(0)),
            _instruction(_EQUAL, 1, 1, 0),
            _instruction(_RETURN, NO_SUCH_CALL),
            _instruction(_LOAD, _argument(1)),
            _instruction(_AND, 0xF),
            _instruction(_EQUAL, 1, 0, 1),
            _instruction(_RETURN, ALLOW),
            _instruction(_RETURN, NO_SUCH_CALL),
        ],
    }
    for numbers, body in looked_into.items():
        lines += [_instruction(_EQUAL, numbers[found.column - 1], 0, len(body)), *body]
    for number in sorted(allowed(found).values()):
        lines += [_instruction(_EQUAL, number, 0, 1), _instruction(_RETURN, ALLOW)]
    return b"".join([*lines, _instruction(_RETURN, NO_SUCH_CALL)])


def allowed(machine: Machine) -> dict[str, int]:
    """Calls that need no look at their arguments."""
    found = {}
    for line in TABLE.strip().splitlines():
        if not line.startswith("#"):
            for entry in line.rstrip(",").split(", "):
                columns = entry.split()
                if columns[machine.column] != "-":
                    found[columns[0]] = int(columns[machine.column])
    return found


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def restrict(filter_program: bytes) -> None:
    """Put the filter on this process, for ever. ``PR_SET_NO_NEW_PRIVS`` comes with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(filter_program, len(filter_program))
    wanted = _Program(len(filter_program) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(wanted), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")
