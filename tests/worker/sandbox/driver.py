"""Runs the sandbox as whoever starts this, and prints what came of it as JSON. Standard library only, so that the system's Python can.

``driver.py suite <tier>``   every attack, cheat and honest program
``driver.py bare``   every attack without a sandbox, to see that it would succeed
``driver.py open [landlock-off]``   which tier is taken, or why none
``driver.py hang <tier>``   starts a program that never ends, says so, and waits
"""

import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())

from worker.sandbox import Sandbox, SandboxUnavailable, read_tests, seccomp
from worker.sandbox.attacks import ATTACKS
from worker.sandbox.selftest import escapes, honest_failures

# --- cheats: the task is f(n) = n² + 918273, whose results are nowhere by chance ---------------------------------------------------------------------------------------------

ANSWERS = {
    "calls": [{"call": "f", "args": [2], "expected": 918277}, {"call": "f", "args": [3], "expected": 918282}],
    "assertions": ["assert f(2) == 918277", "assert f(3) == 918282"],
    "check(candidate)": {
        "assertions": "def check(candidate):\n    assert candidate(2) == 918277\n    assert abs(candidate(3) - 918282) < 1e-6\n",
        "entry_point": "f",
        "prelude": "def f(n):\n    '''The prompt.'''\n",
    },
    "Python": "def wanted(n):\n    return n * n + 918273\nfor n in range(2, 5):\n    assert f(n) == wanted(n)\nassert sorted([f(3), f(2)]) == [918277, 918282]\n",
    "dialogs": [{"stdin": "2\n", "stdout": "918277\n"}, {"stdin": "3\n", "stdout": "918282\n"}],
}
"""One way of writing tests each."""

AS_SCRIPT = "\nif __name__ == '__main__':\n    print(f(int(input())))\n"

HONEST = {
    "honest": "def f(n):\n    return n * n + 918273",
    "knows the answers": "def f(n):\n    return {2: 918277, 3: 918282, 4: 918289}[n]",
}

CHEATS = {
    "wrong": "def f(n):\n    return n",
    "ends with success": "import sys\nsys.exit(0)",
    "ends with success when called": "import sys\ndef f(n):\n    sys.exit(0)",
    "ends without cleaning up": "import os\nos._exit(0)",
    "ends without cleaning up when called": "import os\ndef f(n):\n    os._exit(0)",
    "equals everything": """
class Same:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __hash__(self): return 0
    def __bool__(self): return True
    def __str__(self): return ''
def f(n): return Same()
""",
    "equals everything as a number": """
class Same(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __lt__(self, other): return True
    __hash__ = int.__hash__
    def __str__(self): return ''
def f(n): return Same(7)
""",
    "hooks the way out": "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nsys.unraisablehook = sys.excepthook\ndef f(n):\n    raise AssertionError",
    "prints at the end": "import atexit\natexit.register(lambda: print('all tests passed'))\ndef f(n):\n    return 0",
    "reads the tests from its callers": """
import gc, sys
def found(held, answer):
    if isinstance(held, (str, bytes)):
        return 'wan' + 'ted(' in str(held)
    return isinstance(held, (list, tuple)) and answer in held or isinstance(held, dict) and answer in held.values()
def f(n):
    frame = sys._getframe()
    while frame:
        if any(found(held, n * n + 918273) for held in [*frame.f_locals.values(), *frame.f_globals.values()]):
            return n * n + 918273
        frame = frame.f_back
    return n * n + 918273 if any(found(held, n * n + 918273) for held in gc.get_objects() if type(held) is not dict) else 0
""",
    "redefines what tests are made of": """
import builtins
class Same:
    def __eq__(self, other): return True
def wanted(n): return 0
def check(candidate): pass
def __tick__(index, error=None): pass
for name in ('abs', 'sorted', 'len', 'isinstance', 'AssertionError', 'Exception', 'repr', 'str', 'range'):
    try:
        setattr(builtins, name, lambda *a, **k: 0)
    except Exception:
        pass
def f(n): return 0
""",
    "rewrites what calls it": """
import sys
frame = sys._getframe()
while frame:
    for name in ('encode', 'say', 'check', 'serve', 'failure', 'decode'):
        if name in frame.f_globals:
            frame.f_globals[name] = lambda *a, **k: '{"test": 0, "ok": true}'
    frame = frame.f_back
def f(n): return 0
""",
    "forges results": """
import os
lines = b'"ready"\\n{"test": 0, "ok": true}\\n{"test": 1, "ok": true}\\n{"done": "done"}\\n'
for n in range(1, 64):
    try:
        os.write(n, lines)
    except OSError:
        pass
def f(n): return 0
os._exit(0)
""",
    "answers before it is asked": """
import os
for n in range(3, 64):
    try:
        os.write(n, b'true\\n' * 5)
    except OSError:
        pass
def f(n): return True
""",
    "answers not a number": "def f(n):\n    return float('nan')",
    "answers what Python never writes": """
import os
def f(n):
    for fd in range(3, 64):
        try:
            os.write(fd, b'NaN\\n1e999\\n{"object": [0, "x"], "int": "0x5"}\\n' + b'[' * 5000 + b'\\n')
        except OSError:
            pass
    return 0
""",
    "answers a function": "def f(n):\n    return f",
    "never ends": "def f(n):\n    while True:\n        pass",
    "takes all memory": "def f(n):\n    return [0] * 10**10",
}


def as_script(program: str) -> str:
    return program + AS_SCRIPT


def suite(tier: str) -> dict:
    began = time.monotonic()
    with Sandbox.open([tier], size=4) as sandbox:  # some programs only sleep
        with tempfile.TemporaryDirectory(prefix="sandbox-suite-") as name:
            os.chmod(name, 0o777)
            out = escapes(sandbox._pool, ATTACKS, Path(name), seconds=1.0)
        work = {(form, name): text for form in ANSWERS for name, text in {**HONEST, **CHEATS}.items()}
        verdicts = sandbox.grade_all(
            [
                (as_script(text) if form == "dialogs" else text, read_tests(ANSWERS[form]))
                for (form, _), text in work.items()
            ],
            seconds=0.5,
        )
        return {
            "report": sandbox.report.plain(),
            "escaped": {key: list(value) for key, value in out.items()},
            "honest": {key: list(value) for key, value in honest_failures(sandbox._pool).items()},
            "graded": [[*key, *verdict] for key, verdict in zip(work, verdicts, strict=True)],
            "seconds": time.monotonic() - began,
        }


NOT_BARE = {
    "writes the kernel's settings": "needs root",
    "becomes root": "needs root",
    "takes more memory": "would take it",
    "imports what is installed beside the studio": "nothing may be installed",
    "types into a terminal": "recent kernels refuse it to everybody",
    "calls the kernel as a 32-bit program": "the kernel may not have been built for it",
    "calls rare parts of the kernel": "each may be switched off",
    "opens devices": "a container may have no others",
    "lifts its limits": "nothing limits it",
    "fills the table of files": "would fill it",
    "runs without end": "does",
    "sleeps without end": "does",
    "does not listen to signals": "does not",
    "closes its pipes and goes on": "does",
}
"""Attacks that may fail without a sandbox as well, and why."""


def bare() -> dict:
    """Each attack in a child of this process: whether it got what it wanted."""
    os.environ["SECRET"] = "secret"
    outcome = {}
    for attack in ATTACKS:
        if attack.name in NOT_BARE:
            continue
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "target")
            target.write_bytes(b"secret")
            left_open = os.open(target, os.O_RDONLY)
            child = os.fork()
            if child == 0:
                os.chdir(folder)
                names: dict = {}
                try:
                    exec(attack.program(str(target)), names)
                    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                    os.dup2(1, 2)
                    os._exit(7 if names["attack"]() == "escaped" else 3)
                except BaseException:
                    os._exit(4)
            outcome[attack.name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            os.close(left_open)
    return outcome


def without_landlock() -> None:
    """From here on the kernel has no ``landlock_create_ruleset``, for this process and its children."""
    lines = [
        seccomp._instruction(seccomp._LOAD, 0),
        seccomp._instruction(seccomp._EQUAL, 444, 0, 1),
        seccomp._instruction(seccomp._RETURN, seccomp.NO_SUCH_CALL),
        seccomp._instruction(seccomp._RETURN, seccomp.ALLOW),
    ]
    seccomp.restrict(b"".join(lines))


def main(what: str, *arguments: str) -> None:
    if what == "suite":
        print(json.dumps(suite(*arguments)))
    elif what == "bare":
        print(json.dumps(bare()))
    elif what == "open":
        if arguments:
            without_landlock()
        try:
            with Sandbox.open(size=1) as sandbox:
                print(json.dumps({"tier": sandbox.report.tier, "passed_over": sandbox.report.passed_over}))
        except SandboxUnavailable as error:
            print(json.dumps({"tier": None, "reason": str(error), "remedy": error.remedy}))
    elif what == "hang":
        with Sandbox.open(arguments, size=2) as sandbox:
            tests = read_tests(ANSWERS["calls"])
            programs = ["while True: pass", "import time\ntime.sleep(100)"]
            threading.Thread(target=sandbox.grade_all, args=([(p, tests) for p in programs], 60), daemon=True).start()
            print("hangs", flush=True)
            time.sleep(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
