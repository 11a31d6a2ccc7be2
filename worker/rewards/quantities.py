r"""Numbers as people write them: ``1,234.5``, ``$3``, ``50%``, ``−7``, ``1/2``, ``1 1/2``, ``½``, ``\frac{1}{2}``, ``2e3``.

They are read as exact fractions, so 0.1 + 0.2 is 0.3; NaN and infinity are no numbers and equal nothing. A comma
separates thousands only before groups of three digits: ``1,5`` are two numbers. Digits inside a word (H2O) are none.
"""

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

_CURRENCY = r"[$€£¥₹₩₽₺₫₪]"
_DIGITS = r"(?:\d{1,3}(?:,\d{3}){1,12}(?![\d])|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?P<sign>(?<![\w.)\]}}])[-+](?={_CURRENCY}?[ ]?[\d.\\]))?   # in 10-3 there is no negative number
    (?:{_CURRENCY}[ ]?(?P<inner>-)?)?
    (?:
        \\[dt]?frac\s*\{{\s*(?P<top>-?\d+)\s*\}}\s*\{{\s*(?P<bottom>\d+)\s*\}}
      | (?<![\w.])(?P<whole>\d{{1,9}})[ ]+(?P<upper>\d{{1,9}})/(?P<lower>\d{{1,9}})(?![\d/])
      | (?<![A-Za-z_])(?P<number>{_DIGITS})
        (?:e(?P<exponent>[-+]?\d{{1,3}})(?![\w.]))?
        (?:[ ]?/[ ]?(?P<over>\d+(?:\.\d+)?)(?![ ]?/|\d))?
    )
    (?P<percent>[ ]?(?:%|percent\b))?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LONGEST = 400
"""Characters of a number that is still read: exact arithmetic on longer ones only costs time."""


class Quantity(NamedTuple):
    """A number, and whether a percent sign follows it."""

    value: Fraction
    percent: bool = False


def last_written(text: str) -> str | None:
    """The last number in *text* as it is written there (with one kind of minus), ``None`` if there is none."""
    found = _last(text)
    return None if found is None else found[0].strip()


def read(text: str) -> Quantity | None:
    """The last number in *text*."""
    found = _last(text)
    if found is None or len(found[0]) > _LONGEST:
        return None
    parts = found.groupdict()
    try:
        if parts["top"]:
            size = Fraction(int(parts["top"]), int(parts["bottom"]))
        elif parts["whole"]:
            size = int(parts["whole"]) + Fraction(int(parts["upper"]), int(parts["lower"]))
        else:
            size = Fraction(parts["number"].replace(",", "")) * Fraction(10) ** int(parts["exponent"] or 0)
            if parts["over"]:
                size /= Fraction(parts["over"])
    except ZeroDivisionError:
        return None
    negative = (parts["sign"] == "-") != bool(parts["inner"])
    return Quantity(-size if negative else size, bool(parts["percent"]))


def equal(gold: Quantity, found: Quantity, tolerance: float) -> bool:
    """|found − gold| ≤ tolerance·|gold|. Where only one of them has a percent sign, 50 % is 50 as well as 0.5."""
    golds, readings = {gold.value}, {found.value}
    if gold.percent and not found.percent:
        golds.add(gold.value / 100)
    if found.percent and not gold.percent:
        readings.add(found.value / 100)
    return any(abs(b - a) <= Fraction(tolerance) * abs(a) for a in golds for b in readings)


def _last(text: str) -> re.Match[str] | None:
    last = None
    for line in reversed(text.splitlines()):  # no number spans two lines
        for last in _NUMBER.finditer(_plain(line)):  # noqa: B007
            pass
        if last is not None:
            break
    return last


def _plain(text: str) -> str:
    r"""*text* with one kind of minus, and without LaTeX's ways of writing a number (``10{,}000``, ``\$``, ``\%``)."""
    text = re.sub(r"[−–﹣-](?=[ ]?[\d.$€£\\])", "-", text)  # U+2212, the en dash and their like before a number
    text = re.sub(r"(?<=\d)(?:\{,\}|,\\!|[\u00a0\u202f\u2009])(?=\d{3}(?!\d))", ",", text)
    text = re.sub(r"\\(?=[$%])|\\!", "", text)
    text = re.sub(r"(\d)([¼½¾⅐-⅞])", r"\1 \2", text)
    return re.sub(r"[¼½¾⅐-⅞]", lambda sign: unicodedata.normalize("NFKC", sign[0]).replace("⁄", "/"), text)
