"""What a row from outside may be: strict JSON whose every value survives as it was written, or an error that says why not.

Nothing is silently changed: no NaN, no doubled key of which one would win, no integer that would become a float, no text
that a database cannot keep.
"""

import json
import math
import re
from typing import Any

import orjson

from backend.datasets.rowfile import MAX_COLUMNS
from backend.datasets.rows import Row
from backend.errors import Invalid, TooLarge

MAX_DEPTH = 32


class BadFile(Invalid):
    """This file cannot be read."""


class FileTooLarge(TooLarge):
    """This file is larger than the studio takes."""


def at_line(error: BadFile | FileTooLarge, line: int) -> BadFile | FileTooLarge:
    """The same error, with the line where it was found unless it knows one already."""
    error.fields.setdefault("line", line)
    return error


_KEY = re.compile(rb'"\s*:')


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        doubled = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise BadFile(
            f"The key “{doubled[:80]}” stands twice in one object.", field=doubled[:80], remedy="Keep one of them."
        )
    return found


def integer(digits: str) -> int:
    """The number that *digits* write; raises :class:`BadFile` beyond 64 bits."""
    value = int(digits) if len(digits) < 22 else 2**64
    if not -(2**63) <= value < 2**63:
        raise BadFile(f"The integer {digits[:24]}… has more than 64 bits.", remedy="Write it as text.")
    return value


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadFile(f"The number {digits[:24]} is infinite.", remedy="Write a finite number, or nothing.")
    return value


def _constant(word: str) -> float:
    raise BadFile(f"{word} is no JSON.", remedy="Write null, or leave the key out.")


DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=integer, parse_float=_float, parse_constant=_constant)
"""Slow and strict; it also reads a value out of the middle of a text."""

_FAR = float(2**63)
_SUSPECT = -(10**9)


def _keys(value: Any, depth: int = 1) -> int:
    """How many keys all objects in *value* have, negative if a number may once have been a long integer.

    Raises :class:`BadFile` for what is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.")
    keys = 0
    if type(value) is dict:
        keys, inside = len(value), iter(value.values())
    else:
        inside = iter(value if type(value) is list else ())
    for inner in inside:
        kind = type(inner)
        if kind is str:
            continue
        if kind is dict or kind is list:
            keys += _keys(inner, depth + 1)
        elif (kind is float or kind is int) and not -_FAR < inner < _FAR:
            keys += _SUSPECT
    return keys


def check_texts(value: Any) -> None:
    """Raise :class:`BadFile` for U+0000 and halves of surrogate pairs in any text of *value*."""
    if isinstance(value, str):
        if "\0" in value:
            raise BadFile("A text holds U+0000, which no database keeps.", remedy="Remove it.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadFile(
                "A text holds half of a surrogate pair, which is no character.", remedy="Remove it."
            ) from None
    elif isinstance(value, dict):
        for key, inner in value.items():
            check_texts(key)
            check_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            check_texts(inner)


def check(value: Any) -> None:
    """Raise :class:`BadFile` for what is nested too deeply, and as :func:`check_texts` does."""
    _keys(value)
    check_texts(value)


def parse(text: bytes) -> Any:
    """The JSON value in *text*, strictly. Raises :class:`BadFile` without a line."""
    if b"\0" in text:
        raise BadFile("There is a NUL byte.", remedy="Save the file as UTF-8 text.")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _why(text, error) from None
    # orjson lets the last of two equal keys win: every key ends in a quote and a colon, so if there are no more of
    # those than keys, none stands twice. It also makes floats of long integers. Both are rare, and then read slowly
    if len(_KEY.findall(text)) != _keys(value):
        value = _slowly(text.decode())
    if b"\\u0000" in text:
        check_texts(value)
    return value


def _slowly(text: str) -> Any:
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.") from None
    except json.JSONDecodeError as error:
        raise BadFile(f"This is no JSON: {error.msg} at character {error.pos + 1}.") from None


def _why(text: bytes, error: orjson.JSONDecodeError) -> BadFile:
    """The sentence for what orjson refused."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError as wrong:
        return not_utf8(wrong)
    try:
        check_texts(_slowly(decoded))
    except BadFile as found:
        return found
    if "recursion" in str(error).lower():
        return BadFile(f"The row is nested more than {MAX_DEPTH} levels deep.", remedy="Flatten it.")
    return BadFile(f"This is no JSON: {error.msg}.")


def not_utf8(error: UnicodeDecodeError) -> BadFile:
    """The sentence for bytes of one line that are no UTF-8."""
    return BadFile(
        f"This is no UTF-8: byte 0x{error.object[error.start]:02X} in place {error.start + 1} of the line.",
        remedy="Save the file as UTF-8.",
    )


def as_row(value: Any) -> Row:
    """*value* if it is an object with some columns and not too many; raises :class:`BadFile` or :class:`FileTooLarge`."""
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        raise BadFile(f"A row must be an object with named columns, this is {kind}.", remedy='Write {"prompt": …}.')
    if not value:
        raise BadFile("The row has no columns.")
    if len(value) > MAX_COLUMNS:
        raise FileTooLarge(
            f"The row has {len(value):,} columns; at most {MAX_COLUMNS} are taken.", remedy="Leave some out."
        )
    return value
