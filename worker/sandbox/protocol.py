"""What goes in and comes out, as data: values as Python literals in, JSON lines out, and equality that looks at types.

Everything that comes out was written by a program that wants to be paid: sizes, depth and types are checked before anything is
compared, no object is ever made but plain data, and nothing of the program is called.
"""

import json
import math
from typing import Any, NamedTuple

DEEPEST = 64


class Malformed(Exception):
    """The program's answer is not one."""


class Thing(NamedTuple):
    """Something that is not plain data; equal to nothing that is expected."""

    type_name: str


class Raised(NamedTuple):
    """The call ended in an exception."""

    type_name: str
    words: str


class OutOfMemory(NamedTuple):
    """The call met the bound on memory."""


def source(value: Any) -> str:
    """Python for plain data. Raises ``TypeError`` for anything else."""
    match value:
        case None | bool() | int() | float() | complex() | str() | bytes():
            return repr(value)
        case list():
            return "[" + ",".join(map(source, value)) + "]"
        case tuple():
            return "(" + "".join(source(item) + "," for item in value) + ")"
        case set() | frozenset():
            return f"{type(value).__name__}([{','.join(map(source, value))}])"
        case dict():
            return "{" + ",".join(f"{source(key)}:{source(item)}" for key, item in value.items()) + "}"
        case _:
            raise TypeError(f"{type(value).__name__} is not plain data")


def call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The line that asks for a call."""
    return f"('call', {name!r}, {source(tuple(args))}, {source(kwargs)})"


def _refuse(word: str) -> float:
    raise Malformed(f"{word} is no number")


def _finite(word: str) -> float:
    number = float(word)
    if not math.isfinite(number):
        raise Malformed(f"{word} is no number")
    return number


def decode(line: str) -> Any:
    """An answer as plain data, :class:`Thing`, :class:`Raised` or :class:`OutOfMemory`. Raises :class:`Malformed`."""
    try:
        node = json.loads(line, parse_constant=_refuse, parse_float=_finite)
        match node:
            case {"failed": [str(name), str(words)]} if len(node) == 1:
                return Raised(name, words)
            case {"memory": 1} if len(node) == 1:
                return OutOfMemory()
            case _:
                return _plain(node, 0)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(str(error)[:200]) from None


def _plain(node: Any, depth: int) -> Any:
    if depth > 2 * DEEPEST:
        raise Malformed("too deep")
    if isinstance(node, list):
        return [_plain(item, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    if len(node) != 1:
        raise Malformed("not an answer")
    ((kind, held),) = node.items()
    match kind, held:
        case "int", str():
            return int(held, 16)
        case "float", "nan" | "inf" | "-inf":
            return float(held)
        case "bytes", str():
            return bytes.fromhex(held)
        case "object", [int(), str(name)]:
            return Thing(name)
        case "complex", [_, _]:
            real, imaginary = (_plain(item, depth + 1) for item in held)
            return complex(float(real), float(imaginary))
        case "tuple", list():
            return tuple(_plain(item, depth + 1) for item in held)
        case "set", list():
            return {_plain(item, depth + 1) for item in held}
        case "dict", list() if len(held) % 2 == 0:
            items = [_plain(item, depth + 1) for item in held]
            return dict(zip(items[::2], items[1::2], strict=True))
        case _:
            raise Malformed("not an answer")


def equal(got: Any, expected: Any, *, tolerance: float, loose: bool = False, depth: int = 0) -> bool:
    """Whether an answer is the expected one.

    A bool equals only a bool; numbers are compared by value, with a relative and absolute *tolerance* as soon as one of them is
    a float; NaN equals nothing. *loose*: what was expected came as JSON, which has one kind of sequence and string keys only.
    """
    if depth > DEEPEST:
        return False

    def same(one: Any, other: Any) -> bool:
        return equal(one, other, tolerance=tolerance, loose=loose, depth=depth + 1)

    if isinstance(got, Thing | Raised | OutOfMemory):
        return False
    if isinstance(got, bool) or isinstance(expected, bool):
        return got is expected
    if isinstance(got, int | float) and isinstance(expected, int | float):
        if isinstance(got, int) and isinstance(expected, int):
            return got == expected
        try:
            return math.isclose(got, expected, rel_tol=tolerance, abs_tol=tolerance)
        except OverflowError:
            return False
    if isinstance(got, complex) and isinstance(expected, complex):
        return same(got.real, expected.real) and same(got.imag, expected.imag)
    if isinstance(expected, list) and isinstance(got, list | tuple if loose else list):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, tuple) and isinstance(got, tuple):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, dict) and isinstance(got, dict):
        if loose:
            got = {key if isinstance(key, str) else _text(key): value for key, value in got.items()}
        kinds = {key: type(key) for key in got}
        return len(got) == len(expected) and all(
            key in got and (loose or kinds[key] is type(key)) and same(got[key], value)
            for key, value in expected.items()
        )
    if isinstance(expected, set | frozenset) and isinstance(got, set):
        return {(isinstance(item, bool), item) for item in got} == {(isinstance(item, bool), item) for item in expected}
    return type(got) is type(expected) and bool(got == expected)


def _text(key: Any) -> str:
    """A key as JSON would write it; a number with many digits has no decimal text, and is a key of nothing expected."""
    try:
        return str(key)
    except ValueError:
        return repr(type(key))
