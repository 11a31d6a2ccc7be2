"""Each instruction with texts that follow it and texts that do not, none of them from the benchmark."""

import pytest

from worker.rewards.instructions import KNOWN, checked, follows, sentences

ENGLISH = "the old house by the river was sold to a family from the city last summer"
GERMAN = "Das alte Haus am Fluss wurde im letzten Sommer an eine Familie aus der Stadt verkauft."

CASES = [
    ("keywords:existence", {"keywords": ["River", "boat"]}, ["A boat on the river."], ["A boat at sea.", "river"]),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        ["Tea, then more tea.", "tea tea tea"],
        ["One tea."],
    ),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, ["One tea."], ["Tea and tea."]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["bad", "sad"]},
        ["A badge for Sadie."],
        ["Not BAD.", "so sad"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 3, "let_relation": "at least"},
        ["Zigzag, zap"],
        ["Zigzag"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": "less than"},
        ["no hash"],
        ["# one"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, "12345"]),
    ("change_case:english_capital", {}, [ENGLISH.upper()], [ENGLISH, GERMAN.upper(), "Hello"]),
    ("change_case:english_lowercase", {}, [ENGLISH], [ENGLISH.capitalize(), GERMAN.lower(), "123"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA", "I am A1 HAPPY"],
        ["NASA and Esa", "NASA-led U2"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 3, "relation": "at least"},
        ["one two three", "it's it"],  # it, s, it
        ["one two", "— — — —"],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["one two three"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["It rained. We stayed.", "Really?! Yes"],
        ["Mr. A. Smith paid $3.50.", "..."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n***\nTwo\n***"],
        ["One\n\nTwo", "One\n***\n \n***\nTwo", "One *** Two *** Three", "One ****** Two"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        ["Yes.\n\nHowever, no.", 'A\n\n\n\n"However" b'],
        ["However\n\nYes", "Yes\nHowever", "A\n\nHowever\n\nC"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], at [address]"],
        ["Dear [name]", "[] [ ] [x", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye\nP.S. Call me", "Bye\n\n**P. S.** more"],
        ["Bye", "Bye P.S. inline", "Bye\nP.S.", "Bye\nPsalms"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["x\nP.P.S last"], ["x\nP.S. last"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Intro\n  - a\n  - b\n---", "* **a**: x\n* b"],
        ["* a", "* a\n* b\n* c", "**bold** x\n**bold** y", "*a*\n*b*"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe. Ask again."],
        ["Yes.", "my answer is yes", "My answer is yes. My answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and **two**"],
        ["*one* only", "** ** * *", "*a\nb* *c"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\nA\nSection 2\nB", "# Section 1: A\n# Section 2: B"],
        ["Section 1\nA", "Section 1 A, as in Section 1", "Section 1 Section 2", "Subsection 1 a Subsection 2 b"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1]}\n```', "3"],
        ["Here: {}", "{a: 1}", '{"a": NaN}', '```json\n{"a": 1}\n``` done', '{"a": 1, "a": 2}', "[" * 100_000],
    ),
    ("detectable_format:title", {}, ["<<Joy>>\ntext", "text <<a b>>"], ["<Joy>", "<< >>", "<<a\nb>>", "<<>>"]),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo", "******\nOne\n******\nTwo\n******"],
        ["One", "One******One", "One******", "a******b******c", "a*****b", "a********b"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Name a fish."},
        ["name a fish. Cod."],
        ["Cod.", "Name a fish.", "Sure: Name a fish. Cod."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Is that all?"},
        ["Yes. Is that all?", '"x is that ALL?"\n'],
        ["Is that all? Yes"],
    ),
    ("startend:quotation", {}, ['"Hello."', " “Hello.”\n"], ["Hello", '"Hello', '"', '""', "'Hello'"]),
    ("punctuation:no_comma", {}, ["One and two."], ["One, two", "一，二"]),
]


@pytest.mark.parametrize(
    ("name", "arguments", "text", "verdict"),
    [
        (name, arguments, text, verdict)
        for name, arguments, good, bad in CASES
        for verdict, texts in ((True, good), (False, bad))
        for text in texts
    ],
)
def test_an_instruction_is_followed_or_not(name, arguments, text, verdict):
    assert follows(text, name, arguments) is verdict


def test_every_instruction_of_the_paper_is_known_and_has_both_kinds_of_text_above():
    assert len(KNOWN) == 25
    assert {name for name, _, good, bad in CASES if good and bad} == set(KNOWN)


@pytest.mark.parametrize(("name", "arguments"), [(name, arguments) for name, arguments, _, _ in CASES])
def test_a_text_of_nothing_but_spaces_follows_no_instruction(name, arguments):
    assert not follows(" \n", name, arguments)


def test_the_same_text_gets_the_same_language_every_time():
    short = "no va mal del tot"
    assert len({follows(short, "language:response_language", {"language": "ca"}) for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("One.Two", 1),
        ("He said “Stop.” Then he left.", 2),
        ("Dr. J. K. Lee met Ms. Roe, i.e. a friend, at 3.15 there.", 1),
        ("Wait ... what? No.", 2),
        ("1. First item\n2. Second item", 1),
        ("I have 5. He has 6.", 2),
        ("No end", 1),
        ("Fine. No. He left.", 3),
        ("今日は晴れ。明日は雨。", 2),
        ("", 0),
        ("...", 0),
    ],
)
def test_sentences_are_counted_as_people_do(text, count):
    assert len(sentences(text)) == count


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("keywords:rhyme", {}, "there is no instruction 'keywords:rhyme'"),
        ("length_constraints:number_words", {"num_words": 3}, "relation: Field required"),
        (
            "length_constraints:number_words",
            {"num_words": "few", "relation": "at least"},
            "num_words: .* valid integer",
        ),
        ("length_constraints:number_words", {"num_words": 3, "relation": "about"}, "relation: .*'at least'"),
        ("punctuation:no_comma", {"letter": "a"}, "letter: Extra inputs"),
    ],
)
def test_wrong_arguments_are_named(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        checked(name, arguments)


def test_arguments_that_are_none_are_not_there():
    # some copies of IFEval give every instruction every argument, most of them null
    assert checked("punctuation:no_comma", {"letter": None}) == {}
    assert checked("length_constraints:number_paragraphs", {"num_paragraphs": 2.0}) == {"num_paragraphs": 2}
