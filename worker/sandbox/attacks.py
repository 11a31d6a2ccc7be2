"""Programs that try to get out, and programs that must pass: what the self-test and the regression suite run.

Each attack defines ``attack()``, which answers "escaped" if it got what it wanted; whatever else becomes of it (an exception, a killed
process, another answer) is containment. Each is written so that it does succeed without a sandbox, which the tests prove: a
check that cannot fail would show nothing. ``TARGET`` is a readable file in a writable folder outside, made for the occasion.
"""

from dataclasses import dataclass
from typing import Any

TOOLS = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {
    "x86_64": {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "add_key": 248, "clone": 56, "kcmp": 312, "io_uring_setup": 425,
               "clone3": 435, "pidfd_open": 434, "pidfd_send_signal": 424, "memfd_create": 319, "open_tree": 428, "seccomp": 317},
    "aarch64": {"bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "add_key": 217, "clone": 220, "kcmp": 272, "io_uring_setup": 425,
                "clone3": 435, "pidfd_open": 434, "pidfd_send_signal": 424, "memfd_create": 279, "open_tree": 428, "seccomp": 277},
}[os.uname().machine]

def raw(name, *args):
    return libc.syscall(NUMBERS[name], *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])

def exists(name, *args):
    "Whether the kernel has the call for us at all: it answers anything but that it does not know or does not allow it."
    ctypes.set_errno(0)
    return raw(name, *args) >= 0 or ctypes.get_errno() not in (errno.ENOSYS, errno.EPERM, errno.EACCES)

def done(condition):
    return "escaped" if condition else "contained"
"""


@dataclass(frozen=True)
class Attack:
    """A program that wants out."""

    name: str
    body: str
    """Of ``attack()``, with the tools above and ``TARGET``."""
    at_start: bool = False
    """Whether it is one of those that every start of a worker tries."""

    def program(self, target: str) -> str:
        """The whole program."""
        body = "\n".join("    " + line for line in self.body.strip().splitlines())
        return f"{TOOLS}\nTARGET = {target!r}\n\ndef attack():\n{body}\n"


ATTACKS = (
    # files
    Attack("reads a file outside", "return done(b'secret' in open(TARGET, 'rb').read())", True),
    Attack("writes a file outside", "open(TARGET + '.written', 'w').write('x')\nreturn done(True)", True),
    Attack(
        "reads through a symbolic link",
        "os.symlink(TARGET, 'link')\nreturn done(b'secret' in open('link', 'rb').read())",
    ),
    Attack("reads through a hard link", "os.link(TARGET, 'link')\nreturn done(b'secret' in open('link', 'rb').read())"),
    Attack("changes the mode of a file outside", "os.chmod(TARGET, 0o777)\nreturn done(True)", True),
    Attack("changes the time of a file outside", "os.utime(TARGET, (1, 1))\nreturn done(True)"),
    Attack("cuts a file outside", "os.truncate(TARGET, 3)\nreturn done(True)"),
    Attack("renames a file outside", "os.rename(TARGET, TARGET + '.moved')\nreturn done(True)"),
    Attack("deletes a file outside", "os.unlink(TARGET)\nreturn done(True)"),
    Attack("lists a folder outside", "return done(os.listdir(os.path.dirname(TARGET)))"),
    Attack("reads accounts", "return done('root' in open('/etc/passwd').read())"),
    Attack(
        "reads other processes",
        "return done(any(os.path.exists(f'/proc/{n}/status') and open(f'/proc/{n}/status').read() for n in range(1, 70000)))",
    ),
    Attack(
        "reads the environment of its parent",
        "return done(open('/proc/self/environ', 'rb').read() or open(f'/proc/{os.getppid()}/environ', 'rb').read())",
        True,
    ),
    Attack(
        "finds secrets in its environment",
        "return done(set(os.environ) - {'PATH', 'LANG', 'HOME', 'TMPDIR', 'PWD', 'LC_CTYPE', 'PYTHONDONTWRITEBYTECODE', 'PYTHONHASHSEED'})",
        True,
    ),
    Attack(
        "writes the kernel's settings",
        "os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY))\nreturn done(True)",
        True,
    ),
    Attack(
        "opens devices",
        """
found = [n for n in os.listdir('/dev') if n not in ('null', 'zero', 'random', 'urandom')]
return done(found)
""",
    ),
    Attack(
        "imports what is installed beside the studio",
        """
sys.path += [p + n for p in ('/usr/lib/python3/', '/usr/local/lib/python3.%d/' % sys.version_info[1], sys.prefix + '/lib/python3.%d/' %
             sys.version_info[1]) for n in ('dist-packages', 'site-packages')]
return done([n for p in sys.path for n in (os.listdir(p) if p.endswith('-packages') else []) if n != 'README'])
""",
    ),
    Attack(
        "uses files left open",
        """
import stat
own = []
for n in range(3, 1024):
    try:
        kind = os.fstat(n).st_mode
    except OSError:
        continue
    if not stat.S_ISFIFO(kind):
        own.append(n)
return done(own)
""",
    ),
    # processes
    Attack("forks", "if os.fork() == 0:\n    os._exit(0)\nreturn done(True)", True),
    Attack("starts a program", "import subprocess\nsubprocess.run([sys.executable, '-c', ''])\nreturn done(True)"),
    Attack(
        "forks with clone", "pid = raw('clone', 17, 0, 0, 0, 0)\nif pid == 0:\n    os._exit(0)\nreturn done(pid > 0)"
    ),
    Attack(
        "leaves a daemon behind",
        "if os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(60)\n    os._exit(0)\nreturn done(True)",
    ),
    Attack("signals its parent", "os.kill(os.getppid(), 0)\nreturn done(True)", True),
    Attack("signals everybody", "os.kill(-1, 0)\nreturn done(True)"),
    Attack(
        "lets the kernel signal its parent",
        "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())\nreturn done(fcntl.fcntl(r, fcntl.F_GETOWN) == os.getppid())",
    ),
    Attack("takes a handle on its parent", "return done(raw('pidfd_open', os.getppid(), 0) >= 0)"),
    Attack(
        "traces its parent",
        "return done(libc.ptrace(0x4206, os.getppid(), 0, 0) == 0 or ctypes.get_errno() not in (errno.ENOSYS,))",
        True,
    ),
    Attack(
        "reads the memory of its parent",
        """
class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8)
here, there = Span(ctypes.addressof(room), 8), Span(ctypes.addressof(room), 8)
ctypes.set_errno(0)
got = libc.process_vm_readv(os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
return done(got == 8)
""",
    ),
    Attack(
        "changes the limits of its parent",
        "import resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))\nreturn done(True)",
    ),
    Attack(
        "survives its parent",
        "libc.prctl(1, 0, 0, 0, 0)\nctypes.set_errno(0)\nreturn done(libc.prctl(1, 9, 0, 0, 0) == 0)",
    ),
    # network
    Attack(
        "opens a socket",
        """
import socket
for family in ('AF_INET', 'AF_INET6', 'AF_UNIX', 'AF_NETLINK', 'AF_PACKET', 'AF_VSOCK', 'AF_ALG'):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(getattr(socket, family), kind)
        except (OSError, AttributeError):
            continue
        return 'escaped'
return 'contained'
""",
        True,
    ),
    Attack(
        "sends to a socket by name",
        "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\nreturn done(a.send(b'x') == 1)",
    ),
    # the kernel
    Attack(
        "makes a namespace", "return done(libc.unshare(0x10000000) == 0 or ctypes.get_errno() != errno.ENOSYS)", True
    ),
    Attack(
        "mounts", "return done(libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0) == 0 or ctypes.get_errno() != errno.ENOSYS)"
    ),
    Attack("changes its root", "return done(libc.chroot(b'.') == 0 or ctypes.get_errno() != errno.ENOSYS)"),
    Attack(
        "calls rare parts of the kernel",
        """
return done([n for n in ('bpf', 'perf_event_open', 'userfaultfd', 'add_key', 'io_uring_setup', 'clone3', 'memfd_create', 'kcmp', 'seccomp')
             if exists(n, 0, 0, 0, 0, 0)])
""",
        True,
    ),
    Attack("shares memory", "return done(libc.shmget(0, 4096, 0o1600) >= 0 or libc.msgget(0, 0o1600) >= 0)"),
    Attack("changes its personality", "return done(libc.personality(0x40000) >= 0)"),
    Attack("becomes root", "os.setuid(0)\nreturn done(os.getuid() == 0)", True),
    Attack(
        "types into a terminal",
        "r, w = os.openpty()\nimport fcntl\nfcntl.ioctl(r, 0x5412, b'x')\nreturn done(True)",
    ),
    Attack(
        "calls the kernel as a 32-bit program",
        """
import mmap
assert os.uname().machine == 'x86_64'
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20 (getpid); int 0x80; ret
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
return done(call() == os.getpid())
""",
    ),
    Attack(
        "calls the kernel by another table",
        "assert os.uname().machine == 'x86_64'\nreturn done(libc.syscall(0x40000000 + 39) == os.getpid() or ctypes.get_errno() == errno.ENOSYS)",
    ),
    # measure
    Attack(
        "takes more memory",
        "room = bytearray(1 << 30)\nroom[::4096] = b'x' * len(room[::4096])\nreturn done(True)",
        True,
    ),
    Attack(
        "lifts its limits",
        """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
    soft, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or hard > 1 << 30:
        return 'escaped'
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        return 'escaped'
    except (ValueError, OSError):
        pass
return 'contained'
""",
    ),
    Attack(
        "fills the disk with one file",
        "with open('big', 'wb') as f:\n    for _ in range(32):\n        f.write(bytes(1 << 20))\nreturn done(True)",
    ),
    Attack(
        "fills the disk with many files",
        """
import time
for n in range(64):
    with open(f'big{n}', 'wb') as f:
        f.write(bytes(1 << 20))
    time.sleep(0.005)
return done(True)
""",
    ),
    Attack(
        "fills the table of files",
        "import time\nfor n in range(20000):\n    open(f'f{n}', 'w').close()\ntime.sleep(0.2)\nreturn done(True)",
    ),
    Attack("opens very many files", "keep = [open('/dev/null') for _ in range(500)]\nreturn done(True)"),
    Attack(
        "starts very many threads",
        """
import threading, time
threading.stack_size(32768)
for _ in range(500):
    threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
return done(True)
""",
    ),
    Attack("prints without end", "for _ in range(1000):\n    print('x' * 1000)\nreturn done(True)"),
    Attack("complains without end", "for _ in range(1000):\n    print('x' * 1000, file=sys.stderr)\nreturn done(True)"),
    Attack(
        "runs without end",
        "import time\nwhile time.process_time() < 4:\n    pass\nreturn done(True)",
    ),
    Attack("sleeps without end", "import time\ntime.sleep(3)\nreturn done(True)"),
    Attack(
        "does not listen to signals",
        """
import signal, time
for number in range(1, 32):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while time.process_time() < 4:
    pass
return done(True)
""",
    ),
    Attack(
        "closes its pipes and goes on",
        """
import time
for n in range(64):
    try:
        os.close(n)
    except OSError:
        pass
time.sleep(3)
open(TARGET + '.late', 'w').write('x')
return done(True)
""",
    ),
)


@dataclass(frozen=True)
class Honest:
    """A program that must pass."""

    name: str
    program: str
    """Defines ``work(argument)``."""
    argument: Any
    result: Any


HONEST = (
    Honest("sorts", "def work(x):\n    return sorted(x)", [3, 1, 2], [1, 2, 3]),
    Honest(
        "writes and reads a file",
        """
import tempfile
def work(x):
    with tempfile.TemporaryFile("w+") as file:
        file.write(x)
        file.seek(0)
        return file.read()
""",
        "text",
        "text",
    ),
    Honest(
        "uses threads and the standard library",
        """
import collections, concurrent.futures, dataclasses, decimal, heapq, itertools, math, re, statistics
def work(n):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return sum(pool.map(math.factorial, range(n)))
""",
        6,
        154,  # 0! + 1! + … + 5!
    ),
)
