"""The pieces that need no sandbox: the filter's decisions, equality, decoding, reading tests."""

import math
import struct
from typing import Any

import pytest

from worker.sandbox import TestsUnreadable, read_tests, seccomp
from worker.sandbox.cases import Call, Calls, Check, Dialogs
from worker.sandbox.protocol import Malformed, Raised, Thing, decode, equal, source

# --- the filter, on a machine of paper ----------------------------------------------------------------------------------------------


def decide(program: bytes, audit: int, number: int, *args: int) -> int:
    """What the kernel would do: the packet filter's four kinds of instruction."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *(args + (0,) * 6)[:6])
    at, held = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        match code:
            case 0x20:
                (held,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += yes if held == value else no
            case 0x35:
                at += yes if held >= value else no
            case 0x54:
                held &= value
            case 0x06:
                return int(value)
            case _:
                raise AssertionError(code)


X86, ARM = 0xC000003E, 0xC00000B7


@pytest.mark.parametrize(
    ("machine", "audit", "number", "args", "verdict"),
    [
        ("x86_64", X86, 0, (), seccomp.ALLOW),  # read
        ("aarch64", ARM, 63, (), seccomp.ALLOW),  # read
        ("x86_64", X86, 41, (), seccomp.NO_SUCH_CALL),  # socket
        ("aarch64", ARM, 198, (), seccomp.NO_SUCH_CALL),  # socket
        ("x86_64", X86, 57, (), seccomp.NO_SUCH_CALL),  # fork
        ("x86_64", X86, 58, (), seccomp.NO_SUCH_CALL),  # vfork
        ("x86_64", X86, 62, (), seccomp.NO_SUCH_CALL),  # kill
        ("aarch64", ARM, 129, (), seccomp.NO_SUCH_CALL),  # kill
        ("x86_64", X86, 101, (), seccomp.NO_SUCH_CALL),  # ptrace
        ("x86_64", X86, 90, (), seccomp.NO_SUCH_CALL),  # chmod
        ("x86_64", X86, 435, (), seccomp.NO_SUCH_CALL),  # clone3
        ("x86_64", X86, 56, (0x3D0F00,), seccomp.ALLOW),  # clone for a thread
        ("x86_64", X86, 56, (0x7D0F00,), seccomp.ALLOW),  # as musl asks for one
        ("x86_64", X86, 56, (17,), seccomp.NO_SUCH_CALL),  # clone as fork does
        ("x86_64", X86, 56, (0x3D0F00 | 0x10000000,), seccomp.NO_SUCH_CALL),  # a thread with a namespace
        ("aarch64", ARM, 220, (0x3D0F00,), seccomp.ALLOW),
        ("aarch64", ARM, 220, (17,), seccomp.NO_SUCH_CALL),
        ("x86_64", X86, 302, (0,), seccomp.ALLOW),  # prlimit of itself
        ("x86_64", X86, 302, (1,), seccomp.NO_SUCH_CALL),  # of another
        ("x86_64", X86, 72, (0, 1030), seccomp.ALLOW),  # fcntl F_DUPFD_CLOEXEC
        ("x86_64", X86, 72, (0, 8), seccomp.NO_SUCH_CALL),  # F_SETOWN
        ("x86_64", X86, 53, (1, 1 | 0o2000000), seccomp.ALLOW),  # socketpair AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC
        ("x86_64", X86, 53, (1, 2), seccomp.NO_SUCH_CALL),  # SOCK_DGRAM
        ("x86_64", X86, 53, (2, 1), seccomp.NO_SUCH_CALL),  # AF_INET
        ("x86_64", X86, 16, (0, 0x5413), seccomp.ALLOW),  # ioctl TIOCGWINSZ
        ("x86_64", X86, 16, (0, 0x5412), seccomp.NO_SUCH_CALL),  # TIOCSTI
        ("x86_64", X86, 157, (1, 0), seccomp.NO_SUCH_CALL),  # prctl PR_SET_PDEATHSIG
        ("x86_64", X86, 0x40000000, (), seccomp.KILL),  # x32 read
        ("x86_64", 0x40000003, 3, (), seccomp.KILL),  # i386 read
        ("aarch64", X86, 0, (), seccomp.KILL),
        ("x86_64", X86, 9999, (), seccomp.NO_SUCH_CALL),  # a call of the future
    ],
)
def test_the_filter_decides(machine: str, audit: int, number: int, args: tuple[int, ...], verdict: int) -> None:
    assert decide(seccomp.program(machine), audit, number, *args) == verdict


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(seccomp.Unsupported, match="x86_64 and aarch64, this machine is riscv64"):
        seccomp.program("riscv64")


# --- equality -----------------------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("got", "expected", "verdict"),
    [
        (3, 3, True),
        (3.0, 3, True),
        (True, 1, False),
        (1, True, False),
        (False, False, True),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        (NAN, NAN, False),
        (math.inf, math.inf, True),
        (10**400, 1.0, False),
        (10**400, 10**400, True),
        ("3", 3, False),
        (None, None, True),
        (None, False, False),
        ([1, 2], (1, 2), False),
        ((1, 2), (1, 2), True),
        ([1, [2.0]], [1, [2]], True),
        ([1, [True]], [1, [1]], False),
        ({1, 2}, {2, 1}, True),
        ({1}, {True}, False),
        ({1: 2}, {1: 2.0}, True),
        ({True: 2}, {1: 2}, False),
        ({1: 2, 3: 4}, {1: 2}, False),
        (b"a", "a", False),
        (Thing("Same"), 5, False),
        (Raised("E", ""), 5, False),
    ],
)
def test_equality_looks_at_types(got: Any, expected: Any, verdict: bool) -> None:
    assert equal(got, expected, tolerance=1e-9) is verdict


def test_what_was_expected_in_json_has_one_kind_of_sequence_and_text_keys() -> None:
    assert equal((1, {2: (3,)}), [1, {"2": [3]}], tolerance=0, loose=True)
    assert not equal((1, 2), [1, True], tolerance=0, loose=True)


def test_a_key_too_long_for_decimal_text_is_a_wrong_answer_and_ends_nothing() -> None:
    assert not equal({10**5000: 1}, {"a": 1}, tolerance=0, loose=True)


# --- answers ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("[1,-2.5,\"a\",null,true]", [1, -2.5, "a", None, True]),
        ('{"tuple":[1,{"set":[2]}]}', (1, {2})),
        ('{"dict":[{"tuple":[1]},"x"]}', {(1,): "x"}),
        ('{"int":"-0xff"}', -255),
        ('{"bytes":"00ff"}', b"\0\xff"),
        ('{"object":[0,"Node"]}', Thing("Node")),
        ('{"failed":["ValueError","no"]}', Raised("ValueError", "no")),
    ],
)  # fmt: skip
def test_answers_are_data(line: str, value: Any) -> None:
    assert decode(line) == value


@pytest.mark.parametrize(
    "line",
    [
        "", "ready", "NaN", "1e999", "[" * 100_000, "[1", '{"tuple":1}', '{"set":[[1]]}', '{"dict":[1]}', '{"int":"x"}', '{"float":"1"}',
        '{"tuple":[1],"set":[]}', "{}", '{"eval":"1"}', '{"object":["x"]}', "9" * 5000, '{"complex":[' + "9" * 400 + ",0]}", "[" * 200 + "]" * 200,
    ],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(line: str) -> None:
    with pytest.raises(Malformed):
        decode(line)


def test_arguments_are_written_as_literals_only() -> None:
    assert source([1, ("a",), {2: {3}}, -0.5]) == "[1,('a',),{2:set([3])},-0.5]"
    with pytest.raises(TypeError):
        source(object())


# --- reading tests ------------------------------------------------------------------------------------------------------------------


def test_simple_assertions_become_calls_and_their_answers_stay_outside() -> None:
    tests = read_tests(["assert f(1, [2], k=-3) == (4,)", "assert f() is None", "assert sum(10, 15) == 6"])
    assert tests == Calls(
        (
            Call("f", (1, [2]), {"k": -3}, (4,)),
            Call("f", (), {}, None),
            Call("sum", (10, 15), {}, 6),  # MBPP/126 asks for a function of that name
        )
    )


def test_a_check_of_literals_becomes_calls_of_the_entry_point() -> None:
    text = "\n\nMETADATA = {'author': 'jt'}\n\n\ndef check(candidate):\n    assert True, 'fine'\n    assert candidate('a') == 'b'\n"
    assert read_tests(text, entry_point="solve") == Calls((Call("solve", ("a",), {}, "b"),))


@pytest.mark.parametrize(
    "text",
    [
        "assert f(g(1)) == 2",
        "assert abs(f(1) - 2) < 1e-6",
        "assert f(1) != 2",
        "assert f(1) == g(1)",
        "assert f(1)",
        "assert 1 < f(1) < 3",
        "x = 1\nassert f(x) == 2",
        "for i in range(3):\n    assert f(i) == i",
    ],
)
def test_everything_else_stays_a_program(text: str) -> None:
    tests = read_tests(text)
    assert isinstance(tests, Check)
    assert len(tests) == 1


def test_modules_are_the_real_ones_and_other_names_are_the_programs() -> None:
    tests = read_tests("assert f(1) == sys.getsizeof(1)\nassert math(2) == 2 + 0")
    assert isinstance(tests, Check)
    assert tests.modules == ("sys",)
    assert {"f", "math"} <= set(tests.names)


def test_forms_in_json() -> None:
    calls = read_tests('[{"call": "f", "args": [1], "expected": [2], "tolerance": 0.5}]')
    assert calls == Calls((Call("f", (1,), {}, [2], 0.5, loose=True),))
    assert isinstance(read_tests('[{"stdin": "1", "stdout": "2"}]'), Dialogs)
    assert len(read_tests('{"assertions": ["assert f(1) == 2"], "prelude": "", "entry_point": ""}')) == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "assert nothing"),
        ("[]", "there are no tests"),
        (None, "there are no tests"),
        (7, "there are no tests"),
        ("[1, 2]", "holds either calls"),
        ("[{]", "begin like JSON"),
        ("assert f(1 == 2", "no Python"),
        ("def check(candidate):\n    assert candidate(1) == 2", "needs the entry point"),
        ("def check(candidate):\n    pass", "needs the entry point"),
        ([{"call": "f", "args": [1]}], "no expected result"),
        ([{"call": "f", "expected": 1, "exepcted": 2}], "unknown key 'exepcted'"),
        ([{"call": "os.system", "expected": 1}], "names a function"),
        ([{"call": "f", "expected": 1, "tolerance": True}], "a tolerance is a number"),
        ({"entry_point": "f"}, "an object with tests has assertions"),
        (["assert f(1) == 2"] * 5001, "more than 5,000"),
        ("x" * 2_000_000, "characters"),
        ("[" * 100_000, "begin like JSON"),
        ("assert " + "-" * 100_000 + "1", "no Python"),
    ],
)
def test_what_holds_no_tests_is_refused_in_words(value: Any, words: str) -> None:
    with pytest.raises(TestsUnreadable, match=words):
        read_tests(value)
