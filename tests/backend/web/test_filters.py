"""How values read: units, words for what is not a number, and model text that can do nothing."""

import pytest

from backend.web.filters import browser, duration, markdown, number, sentence, size
from backend.web.streams import last_event_id, sse


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "not measured"),
        (2312, "2,312"),
        (0.69314, "0.6931"),
        (float("nan"), "NaN"),
        (float("-inf"), "−∞"),
        (-0.5, "−0.5"),
        (0.0, "0"),
    ],
)
def test_numbers(value: float | None, words: str) -> None:
    assert number(value) == words


def test_sizes_and_durations() -> None:
    assert [size(n) for n in (0, 1023, 1024, 3 * 2**30)] == ["0 B", "1023 B", "1.0 KiB", "3.0 GiB"]
    assert [duration(n) for n in (None, 59.4, 75, 3600, 90_000)] == [
        "unknown",
        "59 s",
        "1 min 15 s",
        "1 h 0 min",
        "1 d 1 h",
    ]


@pytest.mark.parametrize(
    "payload",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![tracking](https://evil.example/pixel.png)",
        "[click](javascript:alert(1))",
        "[click](data:text/html,<script>alert(1)</script>)",
        "<a href='x' style='position:fixed'>x</a>",
        "<svg onload=alert(1)>",
        "`<b>`<iframe src=//evil.example></iframe>",
    ],
)
def test_model_text_can_do_nothing(payload: str) -> None:
    html = markdown(payload).lower()
    live = ("<script", "<img", "<svg", "<iframe", "<a href='x'", 'href="javascript', 'href="data', 'style="')
    assert not [tag for tag in live if tag in html]


def test_sentences_show_commands_and_escape_the_rest() -> None:
    assert sentence("Run `studio <up>` & wait.") == "Run <code>studio &lt;up&gt;</code> &amp; wait."


def test_browsers_by_their_names() -> None:
    chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36"
    assert browser(chrome) == "Chrome on Linux"
    assert browser(chrome + " Edg/156.0") == "Edge on Linux"
    assert (
        browser("Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19 Safari/604.1") == "Safari on iPhone"
    )
    assert browser("") == "another program"


def test_events_carry_their_number_and_a_stream_resumes_after_it() -> None:
    assert sse("run", {"step": 1}, id=7) == b'id: 7\nevent: run\ndata: {"step":1}\n\n'
    assert sse("log", "a\nb") == b'event: log\ndata: "a\\nb"\n\n'
    assert [last_event_id(*given) for given in (("7", 3), (None, 3), ("x", None), ("", 2))] == [7, 3, 0, 2]
