import json

import pytest

from backend.runs.specs.rewards import CodeTests
from worker.report import SpecCannotWork
from worker.rewards import programs
from worker.rewards.programs import Programs, program
from worker.rewards.rollouts import Rollout
from worker.sandbox import Sandbox, SandboxUnavailable, Verdict

ADD = json.dumps([{"call": "add", "args": [1, 2], "expected": 3}, {"call": "add", "args": [2, 2], "expected": 4}])
HONEST = "def add(a, b):\n    return a + b\n"


def wrote(completion, prompt="Add two numbers.", tests=ADD):
    return Rollout(prompt=prompt, completion=completion, row={"tests": tests})


@pytest.mark.parametrize(
    ("completion", "prompt", "code"),
    [
        (HONEST, "Add.", HONEST),
        (f"Sure:\n```python\n{HONEST}```\nDone.", "Add.", HONEST),
        (f"```\nwrong\n```\nbetter:\n```py\n{HONEST}```", "Add.", HONEST),
        (f"```python\n{HONEST}```\nUse it so:\n```bash\npython add.py\n```", "Add.", HONEST),
        (f"~~~python\n{HONEST}~~~", "Add.", HONEST),
        ("1. So:\n   ```python\n   def add(a, b):\n       return a + b\n   ```", "Add.", HONEST),
        ("    return a + b\n", "def add(a, b):\n", HONEST),
        ("```python\ndef add(a, b):", "Add.", "```python\ndef add(a, b):"),  # cut before its end: no program
    ],
)
def test_the_program_is_the_last_python_block_or_all_or_continues_the_prompt(completion, prompt, code):
    assert program(wrote(completion, prompt)) == code


def test_a_conversation_is_continued_by_nothing():
    assert program(wrote("    return 1", [{"role": "user", "content": "def f():"}])) == "    return 1"


class Scripted:
    """A sandbox that gives out what it was given."""

    def __init__(self, *verdicts):
        self.verdicts, self.jobs, self.closed = list(verdicts), [], False

    def grade_all(self, jobs, seconds):
        self.jobs += jobs
        return [self.verdicts.pop(0) for _ in jobs]

    def close(self):
        self.closed = True


@pytest.fixture
def scripted(monkeypatch):
    def make(*verdicts):
        sandbox = Scripted(*verdicts)
        monkeypatch.setattr(Sandbox, "open", lambda: sandbox)
        return sandbox

    return make


def test_an_error_of_the_sandbox_is_no_score_and_every_other_end_is(scripted):
    scripted(
        Verdict("ok", 2, 2),
        Verdict("wrong", 1, 2),
        Verdict("timeout", 1, 2),
        Verdict("malformed", 0, 2),
        Verdict("infra_error", 0, 2),
    )
    scorer = Programs(CodeTests(), "rewards.components[0]")
    assert scorer.score([wrote(str(i)) for i in range(5)]) == [1, 0, 0, 0, None]
    assert scorer.extras()["timeout"] == [0, 0, 1, 0, 0]
    assert scorer.extras()["wrong"] == [0, 1, 0, 0, 0]
    assert scorer.extras()["infra_error"] == [0, 0, 0, 0, 1]


def test_shares_count_if_asked(scripted):
    scripted(Verdict("ok", 2, 2), Verdict("timeout", 1, 2))
    scorer = Programs(CodeTests(all_or_nothing=False), "rewards.components[0]")
    assert scorer.score([wrote("a"), wrote("b")]) == [1, 0.5]


def test_the_same_program_runs_once_and_a_row_without_tests_not_at_all(scripted):
    sandbox = scripted(Verdict("ok", 2, 2))
    scorer = Programs(CodeTests(), "rewards.components[0]")
    assert scorer.score([wrote("a"), wrote("a"), wrote("a", tests=None)]) == [1, 1, None]
    assert [code for code, _ in sandbox.jobs] == ["a"]
    assert scorer.extras()["wrong"] == [0, 0, None]
    scorer.close()
    assert sandbox.closed


def test_a_setup_of_its_own_column_belongs_to_the_tests(scripted):
    """MBPP 927 builds its trees from the program's own class. The same program and tests with another setup run again."""
    sandbox = scripted(Verdict("ok", 1, 1), Verdict("wrong", 0, 1), Verdict("ok", 1, 1))
    scorer = Programs(CodeTests(column="test_list", setup="test_setup_code"), "rewards.components[0]")
    tests = json.dumps(["assert height(root) == 2"])
    rows = [
        {"test_list": tests, "test_setup_code": setup}
        for setup in ("root = Node(1)\nroot.left = Node(2)", "root = Node(1)", "root = Node(1)", None)
    ]
    scorer.check(rows, "c")
    rollouts = [Rollout(prompt="p", completion="def height(node): ...", row=row) for row in rows]
    assert scorer.score(rollouts) == [1, 0, 0, 1]
    assert [tests.prelude for _, tests in sandbox.jobs] == ["root = Node(1)\nroot.left = Node(2)", "root = Node(1)", ""]
    with pytest.raises(SpecCannotWork, match="no Python"):
        scorer.check([{"test_list": tests, "test_setup_code": "root = ("}], "c")


def watched(*failed):
    """A watch that saw so many programs graded and not, in turns."""
    watch = programs.Watch()
    for number, count in enumerate(failed):
        verdict = Verdict("infra_error", 0, 2, "no memory") if number % 2 else Verdict("wrong", 0, 2)
        watch.look([verdict] * count)
    return watch


def test_a_sandbox_that_fails_one_in_a_hundred_is_said_once():
    """Below a hundred programs nothing is a share; 1 of 101 is less than one in a hundred; of the last thousand, 10 are one."""
    assert watched(0, 1, 98).warnings() == []
    assert watched(100, 1).warnings() == []
    watch = watched(99, 1)
    (said,) = watch.warnings()
    assert said.startswith(
        "Of the last 100 programs 1 were not graded, through no fault of their own (the last: no memory)."
    )
    assert watch.warnings() == []
    assert watched(5000, 9).warnings() == []
    assert len(watched(5000, 10).warnings()) == 1
    assert watched(0, 10, 1000).warnings() == []  # long ago


def test_a_sandbox_that_fails_one_in_ten_ends_the_attempt(scripted):
    """Not as a spec that cannot work: then it would never be tried again."""
    watched(91, 10)  # 10 of 101 is less
    with pytest.raises(programs.SandboxBroken, match="Of the last 100 programs 10 were not graded") as broken:
        watched(90, 10)
    assert "fewer runs" in str(broken.value)
    scripted(*[Verdict("infra_error", 0, 2, "no memory")] * 100)
    with pytest.raises(programs.SandboxBroken):
        Programs(CodeTests(), "rewards.components[0]").score([wrote(str(n)) for n in range(100)])


def test_tests_that_cannot_be_read_are_refused_with_the_field(scripted):
    scripted()
    scorer = Programs(CodeTests(), "rewards.components[0]")
    scorer.check([{"tests": ADD}, {"tests": "assert add(1, 2) == 3"}], "c")
    with pytest.raises(
        SpecCannotWork, match=r"c\.column: 2 of 3 rows have tests in 'tests' that cannot be read; row 2:"
    ):
        scorer.check([{"tests": ADD}, {"tests": "[broken"}, {"tests": None}], "c")


def test_no_sandbox_is_refused_with_what_an_admin_does(monkeypatch):
    def unavailable():
        raise SandboxUnavailable("neither bubblewrap nor landlock works here", "Install bubblewrap.")

    monkeypatch.setattr(programs.Sandbox, "open", unavailable)
    with pytest.raises(SpecCannotWork, match=r"rewards\.components\[0\]: neither bubblewrap nor landlock") as refused:
        Programs(CodeTests(), "rewards.components[0]")
    assert refused.value.remedy == "Install bubblewrap."


def test_programs_run_in_the_real_sandbox():
    try:
        scorer = Programs(CodeTests(seconds=2), "rewards.components[0]")
    except SpecCannotWork as missing:
        pytest.skip(str(missing))
    texts = [
        f"```python\n{HONEST}```",
        "def add(a, b): return a - b",
        "import os\nos._exit(0)",
        "def add(a, b):\n    while True: pass",
        "I cannot program.",
    ]
    try:
        assert scorer.score([wrote(text) for text in texts]) == [1, 0, 0, 0, 0]
        assert scorer.extras()["timeout"] == [0, 0, 0, 1, 0]
    finally:
        scorer.close()
