"""How values read on a page: numbers with their unit, times as people say them, model text as safe HTML."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

_markdown = MarkdownIt("commonmark", {"html": False, "linkify": False}).enable(["table", "strikethrough"])
_TAGS = {
    "p",
    "br",
    "em",
    "strong",
    "s",
    "code",
    "pre",
    "blockquote",
    "ul",
    "ol",
    "li",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "hr",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "a",
}


def markdown(text: str) -> Markup:
    """Model text as HTML: no raw HTML, no images, links with nofollow; what nh3 does not know is dropped."""
    html = _markdown.render(text[:200_000])
    clean = nh3.clean(
        html,
        tags=_TAGS,
        attributes={"a": {"href"}, "code": {"class"}, "ol": {"start"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
    )
    # long lines of code scroll, so the keyboard must reach them
    return Markup(clean.replace("<pre>", '<pre tabindex="0">'))


def number(value: float | int | None, digits: int = 4) -> str:
    """``2312`` → ``2,312``; ``0.69314`` → ``0.6931``; ``None`` → ``not measured``."""
    if value is None:
        return "not measured"
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or value in (float("inf"), float("-inf")):
        return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(value)]
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.{digits}g}".replace("-", "−")
    return f"{value:.2e}".replace("-", "−")


def size(value: int) -> str:
    """Bytes in binary units."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError


def duration(seconds: float | None) -> str:
    """``75`` → ``1 min 15 s``."""
    if seconds is None:
        return "unknown"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


def ago(moment: datetime | None) -> str:
    """How long ago, in words."""
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 5 else f"{duration(seconds)} ago"


def percent(share: float | None, digits: int = 0) -> str:
    """``0.442`` → ``44 %``."""
    return "not measured" if share is None else f"{100 * share:.{digits}f} %"


def sentence(text: str) -> Markup:
    """A sentence of ours with ``commands`` in it, as HTML."""
    parts = re.split(r"`{1,2}([^`]+)`{1,2}", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts)
    )


def browser(agent: str) -> str:
    """``Chrome on Linux`` out of a User-Agent; the order matters, because every browser claims to be the older ones."""
    names = {"Edg/": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
    systems = {
        "Android": "Android",
        "iPhone": "iPhone",
        "iPad": "iPad",
        "Windows": "Windows",
        "Mac OS": "macOS",
        "Linux": "Linux",
    }
    name = next((known for mark, known in names.items() if mark in agent), None)
    system = next((known for mark, known in systems.items() if mark in agent), None)
    return " on ".join(filter(None, [name, system])) or "another program"


ALL: dict[str, Callable[..., Any]] = {
    f.__name__: f for f in (markdown, number, size, duration, ago, percent, sentence, browser)
}
