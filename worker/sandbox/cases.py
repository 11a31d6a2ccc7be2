"""Tests as data: what a row's column holds, read into one of three forms.

:class:`Calls`   calls with plain arguments and the expected results; compared outside.
:class:`Dialogs` standard input and expected standard output; compared outside.
:class:`Check`   Python that asserts. It runs in a sandbox of its own, which holds what is expected and asks the program by pipe.

``assert f(1, [2]) == 3`` with nothing but literals becomes a call, so most of MBPP and HumanEval needs no second sandbox. Everything
else stays Python: helpers, loops, tolerances, setup. Either way no expected value enters the sandbox of the program.

What :class:`Check` cannot see, because programs are asked by value: changes that the program makes in its arguments.
"""

import ast
import json
import sys
from dataclasses import dataclass, replace
from typing import Any

TOLERANCE = 1e-9
"""Relative and absolute difference of floats that still counts as equal: another order of summation, no more."""
LONGEST = 1 << 20
"""Characters of a row's tests."""
MOST = 5000
"""Tests of a row."""


class TestsUnreadable(ValueError):
    """The column does not hold tests; the words say what is wrong."""

    __test__ = False  # for pytest: not a class of tests


@dataclass(frozen=True)
class Call:
    """One call and its result."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    expected: Any
    tolerance: float = TOLERANCE
    loose: bool = False
    """The result came as JSON: a list stands for a tuple too, and keys are strings."""


@dataclass(frozen=True)
class Calls:
    """Calls of the program's functions."""

    cases: tuple[Call, ...]

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class Dialog:
    """What a script is given to read, and what it must print."""

    stdin: str
    stdout: str


@dataclass(frozen=True)
class Dialogs:
    """Runs of the program as a script, each in a fresh process."""

    cases: tuple[Dialog, ...]

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class Check:
    """Assertions as a program; each was given a number and tells whether it held."""

    source: str
    count: int
    prelude: str
    entry_point: str
    names: tuple[str, ...]
    """Names that the assertions use; those they do not define are the program's."""
    modules: tuple[str, ...]
    """Those of the names that are modules of the standard library: assertions get the real ones, never the program's."""

    def __len__(self) -> int:
        return self.count


Tests = Calls | Dialogs | Check


def read_tests(value: object, *, entry_point: str = "", prelude: str = "") -> Tests:
    """Tests as a column holds them: JSON or Python text, or the decoded object. Raises :class:`TestsUnreadable`.

    *entry_point*: the function handed to a ``check(candidate)``. *prelude*: trusted code that assertions need (setup, helpers, the
    prompt with the helpers it defines); it runs beside the assertions, never with the program.
    """
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise TestsUnreadable(f"the tests have more than {LONGEST:,} characters")
        if value.lstrip()[:1] in ("[", "{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise TestsUnreadable(f"the tests begin like JSON but are none: {error}") from None
    if isinstance(value, dict):
        unknown = set(value) - {"assertions", "entry_point", "prelude"}
        if "assertions" not in value or unknown:
            wanted = "an object with tests has assertions and, if needed, entry_point and prelude"
            raise TestsUnreadable(f"{wanted}; this one has {', '.join(map(str, value)) or 'nothing'}")
        entry_point, prelude = str(value.get("entry_point") or entry_point), str(value.get("prelude") or prelude)
        value = value["assertions"]
    if isinstance(value, str):
        return _python(value, entry_point, prelude)
    if not isinstance(value, list) or not value:
        raise TestsUnreadable("there are no tests: wanted a list of calls, of dialogs or of assertions, or Python text")
    if len(value) > MOST:
        raise TestsUnreadable(f"there are more than {MOST:,} tests")
    if all(isinstance(item, str) for item in value):
        return _python("\n".join(item.replace("\r\n", "\n").strip() for item in value), entry_point, prelude)
    if all(isinstance(item, dict) and "call" in item for item in value):
        return Calls(tuple(_json_call(item) for item in value))
    if all(isinstance(item, dict) and item.keys() == {"stdin", "stdout"} for item in value):
        return Dialogs(tuple(Dialog(str(item["stdin"]), str(item["stdout"])) for item in value))
    raise TestsUnreadable(
        "a list of tests holds either calls ({call, args, expected}), or dialogs ({stdin, stdout}), or assertions (texts)"
    )


def _json_call(item: dict[str, Any]) -> Call:
    unknown = set(item) - {"call", "args", "kwargs", "expected", "tolerance"}
    if unknown or "expected" not in item:
        what = f"an unknown key {sorted(map(str, unknown))[0]!r}" if unknown else "no expected result"
        raise TestsUnreadable(f"a call has {what}; it is written {{call, args, kwargs, expected, tolerance}}")
    name, args, kwargs = item["call"], item.get("args", []), item.get("kwargs", {})
    tolerance = item.get("tolerance", TOLERANCE)
    if not (isinstance(name, str) and name.isidentifier() and isinstance(args, list) and isinstance(kwargs, dict)):
        raise TestsUnreadable("a call names a function and has a list of args and an object of kwargs")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance <= 1:
        raise TestsUnreadable("a tolerance is a number from 0 to 1")
    return Call(name, tuple(args), kwargs, item["expected"], float(tolerance), loose=True)


def _parsed(text: str, what: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TestsUnreadable(f"the {what} are no Python: {error}") from None


def _python(text: str, entry_point: str, prelude: str) -> Tests:
    """Assertions as calls if every one of them is that simple, else as a program."""
    text, prelude = text.replace("\r\n", "\n"), prelude.replace("\r\n", "\n")
    tree = _parsed(text, "tests")
    helpers = _parsed(prelude, "prelude of the tests")
    check = next((n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    if check is not None and not entry_point:
        raise TestsUnreadable("check(candidate) needs the entry point: the name of the function it is given")
    simple = _calls(tree, check, entry_point)
    if simple is not None:
        return Calls(tuple(simple))
    numbered = _Numbered()
    source = ast.unparse(ast.fix_missing_locations(numbered.visit(tree)))
    if check is not None:
        source += f"\ncheck({entry_point})\n"
    if not numbered.count:
        raise TestsUnreadable("the tests assert nothing")
    if numbered.count > MOST:
        raise TestsUnreadable(f"there are more than {MOST:,} assertions")
    names = _names(tree) | _names(helpers)
    modules = {name for name in _looked_into(tree) | _looked_into(helpers) if name in sys.stdlib_module_names}
    return Check(source, numbered.count, prelude, entry_point, tuple(sorted(names)), tuple(sorted(modules)))


def _is_trivial(statement: ast.stmt) -> bool:
    """``assert True``, docstrings and ``pass``: nothing that a program could pass or fail."""
    return isinstance(statement, ast.Pass) or (
        isinstance(getattr(statement, "test", getattr(statement, "value", None)), ast.Constant)
        and isinstance(statement, ast.Assert | ast.Expr)
    )


def _calls(tree: ast.Module, check: ast.FunctionDef | None, entry_point: str) -> list[Call] | None:
    """The tests as calls, or nothing if one of them is more than that."""
    if check is None:
        statements, renamed = tree.body, ""
    else:
        # Around check there may be METADATA = {…} of literals, which nobody reads.
        if any(not isinstance(n, ast.Assign) or _literal(n.value) is None for n in tree.body if n is not check):
            return None
        if len(check.args.args) != 1:
            return None
        statements, renamed = check.body, check.args.args[0].arg
    found = []
    for statement in statements:
        if _is_trivial(statement):
            continue
        call = _call(statement)
        if call is None or (renamed and call.name != renamed):
            return None
        found.append(replace(call, name=entry_point) if renamed else call)
    return found or None


def _literal(node: ast.expr) -> tuple[Any] | None:
    """The value of a literal, in a tuple; nothing if it is none."""
    try:
        return (ast.literal_eval(node),)
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
        return None


def _call(statement: ast.stmt) -> Call | None:
    """``assert f(literals) == literal`` (or ``is True``, ``is None``) as a call."""
    if not (isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare)):
        return None
    left, operators, right = statement.test.left, statement.test.ops, statement.test.comparators
    if len(operators) != 1 or not isinstance(left, ast.Call) or not isinstance(left.func, ast.Name):
        return None
    expected = _literal(right[0])
    args = [_literal(argument) for argument in left.args]
    kwargs = {keyword.arg: _literal(keyword.value) for keyword in left.keywords}
    if expected is None or None in args or None in kwargs or None in kwargs.values():
        return None
    singleton = expected[0] is None or isinstance(expected[0], bool)
    if not isinstance(operators[0], ast.Eq) and not (isinstance(operators[0], ast.Is) and singleton):
        return None
    return Call(
        left.func.id,
        tuple(value[0] for value in args if value),
        {str(name): value[0] for name, value in kwargs.items() if value},
        expected[0],
    )


class _Numbered(ast.NodeTransformer):
    """Gives every assertion a number: it reports whether it held, and the next one is tried either way."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if _is_trivial(node):
            return ast.Pass()
        index, self.count = self.count, self.count + 1
        told = ast.parse(f"__tick__({index}, __error__)").body
        passed = ast.parse(f"__tick__({index})").body
        # The message may be an expression over the program's answers; it is not needed.
        bare = ast.Assert(test=node.test, msg=None)
        handler = ast.ExceptHandler(type=ast.Name("Exception", ast.Load()), name="__error__", body=told)
        return ast.Try(body=[bare], handlers=[handler], orelse=passed, finalbody=[])


def _names(tree: ast.Module) -> set[str]:
    """Names that are read somewhere."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _looked_into(tree: ast.Module) -> set[str]:
    """Names of which an attribute is read, as of modules."""
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {node.id for node in found if isinstance(node, ast.Name)}
