"""What runs inside the sandbox. Handed to a bare interpreter as text: standard library only, any Python from 3.10 on.

Three roles, each in a sandbox of its own:

``run``    the program as a script; what it prints is the answer.
``serve``  the program as a module; each line that comes in asks for a call, a line of JSON goes out.
``check``  the tests as a module; what they call in the program goes out as a line that ``serve`` understands, the answer comes
           back as data. No object of the program ever is in this process, so nothing here can be redefined or compare
           as always equal. Results leave by a pipe that the program does not have.

Nothing here is trusted by the other side: a program may forge every line, and then says no more than an answer.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

DEEPEST, MOST = 64, 200_000

# --- values: plain data as JSON lines out, as Python literals in -------------------------------------------------


class NotPlain(Exception):
    """The value is too deep or too large to be told."""


def quoted(text: str) -> str:
    """*text* as JSON."""
    from _json import encode_basestring_ascii  # half the start of ``json``

    return str(encode_basestring_ascii(text))


def encode(value: Any, keep: Callable[[Any], int], depth: int = 0, count: list[int] | None = None) -> str:
    """JSON for *value*: lists as lists, everything else that JSON lacks as an object with one key; *keep* numbers the rest.

    What inherits from a plain type counts as one, read by that type's own methods.
    """
    count = [0] if count is None else count
    count[0] += 1
    if depth > DEEPEST or count[0] > MOST:
        raise NotPlain("too deep or too large")

    def several(values: Iterable[Any]) -> str:
        return "[" + ",".join([encode(item, keep, depth + 1, count) for item in values]) + "]"

    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(str.__str__(value))
    if isinstance(value, int):
        value = int.__index__(value)
        return str(value) if -(2**63) < value < 2**63 else f'{{"int":"{value:#x}"}}'
    if isinstance(value, float):
        value = float.__float__(value)
        return repr(value) if value - value == 0 else f'{{"float":"{value!r}"}}'
    if isinstance(value, complex):
        return f'{{"complex":{several([value.real, value.imag])}}}'
    if isinstance(value, bytes | bytearray):
        return f'{{"bytes":"{bytes(value).hex()}"}}'
    if isinstance(value, list):
        return several(list.__iter__(value))
    if isinstance(value, tuple):
        return f'{{"tuple":{several(tuple.__iter__(value))}}}'
    if isinstance(value, set | frozenset):
        return f'{{"set":{several(value)}}}'
    if isinstance(value, dict):
        return f'{{"dict":{several(item for pair in dict.items(value) for item in pair)}}}'
    return f'{{"object":[{keep(value)},{quoted(type(value).__name__[:80])}]}}'


def failure(error: BaseException) -> str:
    """JSON for an exception of the program."""
    try:
        words = str(error)[:300]
    except BaseException:
        words = ""
    return f'{{"failed":[{quoted(type(error).__name__[:80])},{quoted(words)}]}}'


# --- the program ---------------------------------------------------------------------------------------------------


def module(name: str) -> dict[str, Any]:
    """The names of a fresh module that can be looked up, as dataclasses and typing do."""
    made = types.ModuleType(name)
    made.__dict__["__builtins__"] = builtins
    sys.modules[name] = made
    return made.__dict__


def load(text: str, name: str, names: dict[str, Any]) -> None:
    """Run *text* in *names*."""
    exec(compile(text, name, "exec", dont_inherit=True), names)


def serve(text: str, incoming: Iterator[bytes], say: Callable[[str], None]) -> None:
    """Load the program, then carry out what is asked, line by line."""
    objects: list[Any] = []
    solution = module("solution")

    def keep(value: Any) -> int:
        objects.append(value)
        return len(objects) - 1

    def named(target: int | str) -> Any:
        if isinstance(target, int):
            return objects[target]
        if target not in solution:
            raise NameError(f"name {target!r} is not defined")
        return solution[target]

    def carry_out(kind: str, target: int | str, *rest: Any) -> Any:
        thing = named(target)
        if kind == "call":
            return thing(*rest[0], **rest[1])
        if kind == "get":
            return getattr(thing, rest[0])
        if kind == "set":
            return setattr(thing, *rest)
        return [item for item, _ in zip(thing, range(MOST), strict=False)]

    def answered(make: Callable[[], str]) -> str:
        try:
            return make()
        except MemoryError:
            return '{"memory":1}'
        except BaseException as error:
            return failure(error)

    def loaded() -> str:
        load(text, "program.py", solution)
        return '"ready"'

    say(answered(loaded))
    known: dict[str, Any] = {kind.__name__: kind for kind in (bool, bytes, complex, dict, float, frozenset, int)}
    known |= {kind.__name__: kind for kind in (list, object, set, str, tuple)}
    known |= {"__builtins__": {}, "inf": float("inf"), "nan": float("nan"), "thing": objects.__getitem__}
    for line in incoming:
        say(answered(lambda line=line: encode(carry_out(*eval(line, known)), keep)))  # type: ignore[misc]


# --- the tests -----------------------------------------------------------------------------------------------------


class Gone(BaseException):
    """The program does not answer any more."""


class ProgramError(Exception):
    """The program raised something that is not built in."""


class Thing:
    """Something of the program that is not plain data: handed around, looked into, never compared with what is expected."""

    __slots__ = ("_ask", "_number")

    def __init__(self, number: int, ask: Callable[..., Any]) -> None:
        object.__setattr__(self, "_number", number)
        object.__setattr__(self, "_ask", ask)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", self._number, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, in the program."""
        return self._ask("call", self._number, args, kwargs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask("list", self._number))

    def __bool__(self) -> bool:
        raise TypeError("the program's answer is not plain data")


class Function:
    """A name of the program, to be called."""

    def __init__(self, name: str, ask: Callable[..., Any]) -> None:
        self._name, self._ask = name, ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, in the program."""
        return self._ask("call", self._name, args, kwargs)


def source(value: Any) -> str:
    """Python for *value*, which may hold things of the program."""
    kind: Any = type(value)
    if kind is Thing:
        return f"thing({value._number})"
    if kind is dict:
        return "{" + ",".join(f"{source(key)}:{source(item)}" for key, item in value.items()) + "}"
    if kind in (list, tuple, set, frozenset):
        within = "".join(source(item) + "," for item in value)
        return f"({within})" if kind is tuple else f"[{within}]" if kind is list else f"{kind.__name__}([{within}])"
    if value is None or kind in (bool, int, float, complex, str, bytes):
        return repr(value)
    name = str(kind is type and value.__name__)
    if kind is type and getattr(builtins, name, None) is value:
        return name
    raise TypeError(f"only plain data can be handed to the program, not {kind.__name__}")


def decode(line: bytes, ask: Callable[..., Any]) -> Any:
    """The program's line as plain data. Whatever is wrong with it is an error of the test that asked."""
    import json

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no number")

    def plain(node: Any, depth: int = 0) -> Any:
        if depth > 2 * DEEPEST:
            raise ValueError("too deep")
        if type(node) is list:
            return [plain(item, depth + 1) for item in node]
        if type(node) is not dict:
            return node
        ((kind, held),) = node.items()
        if kind == "int":
            return int(held, 16)
        if kind == "float":
            return float(held)
        if kind == "bytes":
            return bytes.fromhex(held)
        if kind == "object":
            return Thing(int(held[0]), ask)
        within = plain(held, depth + 1)
        if kind == "complex":
            return complex(*within)
        if kind == "dict":
            return dict(zip(within[::2], within[1::2], strict=True))
        return {"tuple": tuple, "set": set}[kind](within)

    node = json.loads(line, parse_constant=refuse)
    if type(node) is dict and "memory" in node:
        raise MemoryError
    if type(node) is dict and "failed" in node:
        name, words = map(str, node["failed"])
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
            raise kind(words)
        raise ProgramError(f"{name}: {words}")
    return plain(node)


def check(job: dict[str, Any], incoming: Iterator[bytes], say: Callable[[str], None]) -> None:
    """Run the tests; each assertion tells by its number whether it held."""
    import importlib
    import json

    def ask(kind: str, target: int | str, *rest: Any) -> Any:
        say(json.dumps({"ask": source((kind, target, *rest))}))
        line = next(incoming, b"")
        if not line:
            raise Gone
        return decode(line, ask)

    def words(error: BaseException) -> str:
        return f"{type(error).__name__}: {str(error)[:200]}"

    def tick(index: int, error: BaseException | None = None) -> None:
        why = "" if error is None or isinstance(error, AssertionError) else words(error)
        say(json.dumps({"test": index, "ok": error is None, "why": why}))

    names = module("tests")
    for name in job["names"]:
        if name in job["modules"]:
            names[name] = importlib.import_module(name)
        elif not hasattr(builtins, name):
            names[name] = Function(name, ask)
    names["__tick__"] = tick
    said = "done"
    try:
        load(job["prelude"], "prelude.py", names)
        if job["entry_point"]:
            names[job["entry_point"]] = names["candidate"] = Function(job["entry_point"], ask)
        load(job["source"], "tests.py", names)
    except Gone:
        pass
    except BaseException as error:  # what stands between the assertions failed: those after it count as not passed
        said = words(error)
    say(json.dumps({"done": said}))


# --- the beginning ---------------------------------------------------------------------------------------------------


def main(incoming: int, outgoing: int) -> None:
    """File descriptors: jobs and questions come in by the first, answers go out by the second."""

    def say(text: str) -> None:
        line = text.encode("ascii", "backslashreplace") + b"\n"
        while line:
            line = line[os.write(outgoing, line) :]

    lines = os.fdopen(incoming, "rb", closefd=False)
    job = eval(next(lines), {"__builtins__": {}})
    if os.geteuid() == 0:
        raise SystemExit("this process is root")
    for name, most in job["limits"].items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most + 1 if name == "RLIMIT_CPU" else most))
    sys.path[:] = [path for path in sys.path if path]
    say('"begun"')
    if job["role"] == "run":
        os.close(incoming)
        os.close(outgoing)
        load(job["text"], "program.py", module("__main__"))
        return
    if job["role"] == "serve":
        serve(job["text"], lines, say)
    else:
        check(job, lines, say)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
