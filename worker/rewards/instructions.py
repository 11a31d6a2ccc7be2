"""The instructions of IFEval that a program can check, each as a function of the text. Zhou et al. 2023, arXiv:2311.07911.

Written anew from the paper; what the parameters mean is as there, and a text of nothing but spaces follows none. Where
the paper's own checker can be cheated or goes wrong on honest text, these are stricter, and say so. Words are runs of
letters and digits; sentences are split by rules of our own, without a trained model.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from worker.rewards.formats import parsed

_Follows = Callable[..., bool]

Relation = Literal["at least", "less than", "at most", "exactly"]
"""IFEval has the first two."""

KNOWN: dict[str, _Follows] = {}
"""Every instruction by its id."""


def _instruction(name: str) -> Callable[[_Follows], _Follows]:
    def register(follows: _Follows) -> _Follows:
        KNOWN[name] = follows
        return follows

    return register


def follows(text: str, name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether *text* follows the instruction. Raises ``ValueError`` as :func:`checked` does."""
    return bool(text.strip()) and KNOWN[name](text, **checked(name, arguments))


def checked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The instruction's arguments with their types; raises ``ValueError`` that says what is wrong with them."""
    if name not in KNOWN:
        raise ValueError(f"there is no instruction {name!r}")
    try:
        model = _arguments(name)(**{key: value for key, value in arguments.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}: {where}: {first['msg']}") from error
    return dict(model)


@cache
def _arguments(name: str) -> type[BaseModel]:
    parameters = list(inspect.signature(KNOWN[name]).parameters.values())[1:]
    fields: dict[str, Any] = {parameter.name: (parameter.annotation, ...) for parameter in parameters}
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _holds(count: int, relation: Relation, target: int) -> bool:
    match relation:
        case "at least":
            return count >= target
        case "less than":
            return count < target
        case "at most":
            return count <= target
        case "exactly":
            return count == target


# --- keywords ----------------------------------------------------------------------------------------------------


@_instruction("keywords:existence")
def _keywords_exist(text: str, keywords: list[str]) -> bool:
    return all(keyword.casefold() in text.casefold() for keyword in keywords)


@_instruction("keywords:frequency")
def _keyword_frequency(text: str, keyword: str, frequency: int, relation: Relation) -> bool:
    return _holds(text.casefold().count(keyword.casefold()), relation, frequency)


@_instruction("keywords:forbidden_words")
def _no_forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


@_instruction("keywords:letter_frequency")
def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


# --- language and case -------------------------------------------------------------------------------------------


@_instruction("language:response_language")
def _in_language(text: str, language: str) -> bool:
    return _language(text) == language


@_instruction("change_case:english_capital")
def _english_capitals(text: str) -> bool:
    return text.isupper() and _language(text.lower()) == "en"  # the detector knows ordinary writing


@_instruction("change_case:english_lowercase")
def _english_lowercase(text: str) -> bool:
    return text.islower() and _language(text) == "en"


@_instruction("change_case:capital_word_frequency")
def _capital_words(text: str, capital_frequency: int, capital_relation: Relation) -> bool:
    words = re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def _language(text: str) -> str | None:
    """The language's code; ``None`` for a text without letters, which IFEval's checker takes for any language."""
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0  # it draws; the same text must get the same verdict
    try:
        return str(detect(text[:10_000]))
    except LangDetectException:
        return None


# --- length ------------------------------------------------------------------------------------------------------


@_instruction("length_constraints:number_words")
def _number_of_words(text: str, num_words: int, relation: Relation) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


@_instruction("length_constraints:number_sentences")
def _number_of_sentences(text: str, num_sentences: int, relation: Relation) -> bool:
    return _holds(len(sentences(text)), relation, num_sentences)


_ABBREVIATION = re.compile(
    r"(?:\n\s*\d+|(?<!\w)(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Gen|Capt|Lt|Col|vs|e\.g|i\.e|cf|approx|Ph\.D|[A-Z](?:\.[A-Z])+))\.$"
)
"""What ends with a full stop that ends no sentence: titles, initials, the number of a list's item."""

_END = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|$))|[。！？।]+[」』”]*")

_NEXT = re.compile(r"\s*(.?)", re.DOTALL)


def sentences(text: str) -> list[str]:
    """*text* cut after ``.``, ``!``, ``?`` and their like before a space, but not in ``Mr. A. Smith``, ``3.5`` or ``1.``."""
    found, start = [], 0
    for end in _END.finditer(text):
        before = text[max(start, end.end() - 20) : end.end()]
        follows = _NEXT.match(text, end.end())[1]  # type: ignore[index]  # it matches anywhere
        if end[0][0] == "." and len(end[0]) == 1 and follows and _ABBREVIATION.search("\n" * (not start) + before):
            continue
        if follows.islower():  # "Wait ... what?" goes on
            continue
        found.append(text[start : end.end()].strip())
        start = end.end()
    return [piece for piece in [*found, text[start:].strip()] if re.search(r"\w", piece)]


@_instruction("length_constraints:number_paragraphs")
def _number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Separated by ``***``; none of them empty, save before the first and after the last mark."""
    pieces = _inner(re.split(r"(?<!\*)\*{3}(?!\*)", text))
    return len(pieces) == num_paragraphs and all(pieces)


def _inner(pieces: list[str]) -> list[str]:
    """*pieces* between marks, without spaces, and without an empty one before the first or after the last mark."""
    stripped = [piece.strip() for piece in pieces]
    return stripped[0 if stripped[0] else 1 : len(stripped) if stripped[-1] else -1]


@_instruction("length_constraints:nth_paragraph_first_word")
def _first_word_of_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Separated by empty lines."""
    paragraphs = [piece for piece in re.split(r"\n[ \t\r]*\n", text) if piece.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = paragraphs[nth_paragraph - 1].split()[0].strip("\"'“”‘’*_#>([{.,:;!?)]}-–—")
    return first.casefold() == first_word.casefold()


# --- content and format ------------------------------------------------------------------------------------------


@_instruction("detectable_content:number_placeholders")
def _placeholders(text: str, num_placeholders: int) -> bool:
    """``[something]``; empty brackets are none."""
    return sum(bool(inside.strip()) for inside in re.findall(r"\[([^\[\]\n]*)\]", text)) >= num_placeholders


@_instruction("detectable_content:postscript")
def _postscript(text: str, postscript_marker: str) -> bool:
    """A line that begins with the marker and goes on."""
    letters = re.findall(r"\w", postscript_marker)
    marker = r"\.?[ ]?".join(map(re.escape, letters))
    return re.search(rf"^[^\w\n]*{marker}(?!\w)\.?\W*\w", text, re.IGNORECASE | re.MULTILINE) is not None


@_instruction("detectable_format:number_bullet_lists")
def _bullets(text: str, num_bullets: int) -> bool:
    """Lines that begin with ``*``, ``-`` or ``+``, a space and text: a rule (``---``) is no bullet."""
    return len(re.findall(r"^[ \t]*[*+-][ \t]+\S", text, re.MULTILINE)) == num_bullets


@_instruction("detectable_format:constrained_response")
def _one_option(text: str) -> bool:
    """Exactly one of the three: who says yes and no has not answered."""
    return sum(f"My answer is {option}." in text for option in ("yes", "no", "maybe")) == 1


@_instruction("detectable_format:number_highlighted_sections")
def _highlights(text: str, num_highlights: int) -> bool:
    spans = re.findall(r"\*\*([^\n*]+)\*\*|\*([^\n*]+)\*", text)
    return sum(bool((bold or plain).strip()) for bold, plain in spans) >= num_highlights


@_instruction("detectable_format:multiple_sections")
def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """``Section 1``, ``Section 2``, …: different numbers, text after each (``section_spliter`` is IFEval's spelling)."""
    pieces = re.split(rf"(?<!\w){re.escape(section_spliter)}\s?(\d+)", text)
    numbers = {number for number, content in zip(pieces[1::2], pieces[2::2], strict=True) if re.search(r"\w", content)}
    return len(numbers) >= num_sections


@_instruction("detectable_format:json_format")
def _is_json(text: str) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


@_instruction("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


# --- combinations, beginning and end, punctuation ----------------------------------------------------------------


@_instruction("combination:two_responses")
def _two_responses(text: str) -> bool:
    """Two different ones, six asterisks between them (and, as the paper's checker has it, around them)."""
    responses = _inner(re.split(r"(?<!\*)\*{6}(?!\*)", text))
    return len(responses) == 2 and all(responses) and responses[0] != responses[1]


@_instruction("combination:repeat_prompt")
def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The request word for word, and then more."""
    said, asked = text.strip().casefold(), prompt_to_repeat.strip().casefold()
    return said.startswith(asked) and len(said) > len(asked)


@_instruction("startend:end_checker")
def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"”').casefold().endswith(end_phrase.strip().strip('"”').casefold())


@_instruction("startend:quotation")
def _quoted(text: str) -> bool:
    inside = text.strip()
    return len(inside) > 2 and (inside[0], inside[-1]) in {('"', '"'), ("“", "”")}


@_instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    """Nor those of other scripts."""
    return not re.search("[,，、،]", text)
