"""Verdicts: one program for each kind, each form of tests, and what the machine's own failures become."""

import os
import signal
import threading
import time

import pytest

from worker.sandbox import Sandbox, Verdict, read_tests

pytestmark = pytest.mark.slow

ADD = read_tests(
    [{"call": "add", "args": [1, 2], "expected": 3}, {"call": "add", "args": ["a", "b"], "expected": "ab"}]
)


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def add(a, b): return a + b", ("ok", 2)),
        ("def add(a, b): return 3", ("wrong", 1)),
        ("def add(a, b): return int(a) + int(b)", ("runtime_error", 1)),
        ("def add(a, b): return a if a == 'ab' else 1 / 0", ("runtime_error", 0)),
        ("def add(a, b) return a + b", ("runtime_error", 0)),
        ("def plus(a, b): return a + b", ("runtime_error", 0)),
        ("def add(a, b):\n    while a == 'a': pass\n    return a + b", ("timeout", 1)),
        ("def add(a, b): return [0] * 10**9", ("memory", 0)),
        ("room = [0] * 10**9", ("memory", 0)),
        ("def add(a, b):\n    print('x' * 10**6)\n    return a + b", ("output_limit", None)),
        ("def add(a, b): return 'x' * 10**7", ("output_limit", 0)),
        ("import os\ndef add(a, b):\n    for fd in range(3, 64):\n        try: os.write(fd, b'what?\\n')\n        except OSError: pass\n    return a + b", ("malformed", 0)),
        ("def add(a, b):\n    x = []\n    for _ in range(1000): x = [x]\n    return x", ("runtime_error", 0)),
        ("def add(a, b): return object()", ("wrong", 0)),
        ("import ctypes\nctypes.string_at(0)", ("runtime_error", 0)),
    ],
)  # fmt: skip
def test_each_kind(sandbox: Sandbox, program: str, verdict: tuple[str, int | None]) -> None:
    said = sandbox.grade(program, ADD, seconds=1)
    assert said.kind == verdict[0]
    assert said.total == 2
    assert said.passed == verdict[1] or verdict[1] is None
    assert said.scored


def test_values_come_back_as_they_are(sandbox: Sandbox) -> None:
    values = [None, True, -(10**30), 1.5, 2j, "é\ud800\0", b"\0", (1, [2]), {3, 4}, {1: {"a": ()}, (2,): None}]  # fmt: skip
    tests = read_tests([f"assert give({value!r}) == {value!r}" for value in values])
    assert sandbox.grade("def give(x): return x", tests) == Verdict("ok", len(values), len(values))


def test_a_script_gets_each_input_in_a_process_of_its_own(sandbox: Sandbox) -> None:
    tests = read_tests([{"stdin": "1 2", "stdout": "3\n"}, {"stdin": "5 6", "stdout": "11  \n\n"}])
    counting = "import os\nopen('seen', 'x')\nprint(sum(map(int, input().split())))"
    assert sandbox.grade(counting, tests) == Verdict("ok", 2, 2)
    assert sandbox.grade("print(3)", tests)[:3] == ("wrong", 1, 2)
    assert sandbox.grade("print(sum(map(int, input().split())))\n1 / 0", tests)[:3] == ("runtime_error", 0, 2)


def test_assertions_that_are_programs(sandbox: Sandbox) -> None:
    """Objects of the program, a loop, a tolerance, an expected exception, a lazy answer, a module: 6 assertions, one per line."""
    tests = read_tests(
        """
root = Node(1)
root.left = Node(2)
assert height(root) == 2
for n in range(50):
    assert double(n) == 2 * n
assert math.fabs(half(3) - 1.5) < 1e-9
try:
    half("x")
    assert False == 1
except TypeError:
    assert half(2) == 1
assert list(lazy(3)) == [0, 1, 2]
"""
    )
    assert len(tests) == 6
    program = """
class Node:
    def __init__(self, value): self.left = self.right = None
def height(node): return 1 + max(height(node.left), height(node.right)) if node else 0
def double(n): return n + n
def half(x): return x / 2
def lazy(n): return (i for i in range(n))
"""
    said = sandbox.grade(program, tests)
    assert said.passed == 5  # the assertion that must not be reached was not
    assert said.total == 6
    assert sandbox.grade(program.replace("n + n", "n + n + (n == 49)"), tests).passed == 4


def test_helpers_come_from_the_prompt_and_not_from_the_program(sandbox: Sandbox) -> None:
    """HumanEval/32: the check calls ``poly``, which the program may define as it likes."""
    prompt = "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n\ndef find_zero(xs):\n    '''A root.'''\n"
    check = (
        "def check(candidate):\n    for xs in ([1, 2], [-6, 3]):\n        assert abs(poly(xs, candidate(xs))) < 1e-4\n"
    )
    tests = read_tests({"assertions": check, "entry_point": "find_zero", "prelude": prompt})
    assert sandbox.grade(prompt + "    return -xs[0] / xs[1]", tests).kind == "ok"
    assert sandbox.grade("def poly(xs, x): return 0\ndef find_zero(xs): return 0", tests).kind == "wrong"


def test_tests_that_cannot_run_are_nobodys_mistake_but_the_rows(sandbox: Sandbox) -> None:
    tests = read_tests("import os\nos._exit(3)\nassert add(1, 2) == 3\nassert add(1, 1) == int('2')")
    assert not sandbox.grade("def add(a, b): return a + b", tests).scored


def test_a_slot_that_dies_is_replaced_and_the_program_run_again(sandbox: Sandbox) -> None:
    answers: list[Verdict] = []
    slow = "import time\ntime.sleep(0.7)\ndef add(a, b): return a + b"
    thread = threading.Thread(target=lambda: answers.append(sandbox.grade(slow, ADD)))
    thread.start()
    time.sleep(0.3)
    for slot in list(sandbox._pool._slots):
        os.kill(slot.id, signal.SIGKILL)
    thread.join()
    assert answers == [Verdict("ok", 2, 2)]


def test_a_program_that_cannot_be_run_is_unscored(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def lost(message: object, seconds: float) -> dict[str, str]:
        tries.append(message)
        return {"state": "infra", "detail": "no room"}

    for slot in sandbox._pool._slots:
        monkeypatch.setattr(slot, "ask", lost)
    verdicts = sandbox.grade_all([("def add(a, b): return a + b", ADD)])
    assert verdicts == [Verdict("infra_error", 0, 2, "no room")]
    assert not verdicts[0].scored
    assert len(tries) == 3


def test_many_at_once_come_back_in_order(sandbox: Sandbox) -> None:
    work = [(f"def f(x): return x + {n}", read_tests([{"call": "f", "args": [0], "expected": 3}])) for n in range(8)]
    assert [verdict.kind for verdict in sandbox.grade_all(work)].index("ok") == 3


def test_a_setup_builds_what_tests_need_from_the_programs_own_classes(sandbox: Sandbox) -> None:
    """As MBPP 367 and 927 do: the tree is the program's, and its parts are handed around by number."""
    program = "class Node:\n    def __init__(self, n):\n        self.n, self.left = n, None\n"
    program += "def height(node): return 0 if node is None else 1 + height(node.left)\n"
    setup = "root = Node(1)\nroot.left = Node(2)"
    tests = read_tests(["assert height(root) == 2", "assert (height(root.left)) == 1 "], prelude=setup)
    assert sandbox.grade(program, tests) == Verdict("ok", 2, 2)
    assert sandbox.grade(program.replace("else 1", "else 2"), tests).kind == "wrong"


def test_programs_share_nothing(sandbox: Sandbox) -> None:
    """What one leaves in its folder no other finds."""
    leave = "open('note', 'w').write('5')\ndef f(): return 1"
    find = "import os\ndef f(): return os.listdir('.')"
    tests = read_tests([{"call": "f", "expected": []}])
    for _ in range(3):
        sandbox.grade(leave, tests)
    assert sandbox.grade(find, tests).kind == "ok"
