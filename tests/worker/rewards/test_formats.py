import time

import pytest
from pydantic import ValidationError

from backend.runs.specs.rewards import JSONFormat, PatternFormat, TagFormat
from worker.rewards.formats import JSON, Pattern, Tags, tagged
from worker.rewards.rollouts import Rollout

TWO = ["think", "answer"]


def one(scorer, completion):
    return scorer.score([Rollout(prompt="?", completion=completion)])[0]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("<think>a</think><answer>b</answer>", True),
        (" <think>\na\n</think>\n\n<answer> b </answer>\n", True),
        ("<think></think><answer>b</answer>", True),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think>", False),
        ("<answer>b</answer><think>a</think>", False),
        ("Well: <think>a</think><answer>b</answer>", False),
        ("<think>a</think> so <answer>b</answer>", False),
        ("<think>a</think><answer>b</answer> done", False),
        ("<think>a</think><answer>b</answer><answer>c</answer>", False),
        ("<think>a<think></think><answer>b</answer>", False),
        ("<think>a<answer>x</answer></think><answer>b</answer>", False),
        ("<think>a</think><answer>b", False),
        ("<think>a<answer></think>b</answer>", False),
        ("</think>a<think><answer>b</answer>", False),
        ("", False),
    ],
)
def test_tags_stand_once_each_in_order_with_nothing_outside(text, fits):
    assert tagged(text, TWO) is fits
    assert one(Tags(TagFormat()), text) == fits


def test_other_tags_can_be_asked_for():
    assert one(Tags(TagFormat(tags=["plan"])), "<plan>x < y</plan>") == 1
    for wrong in (["<think>"], ["a", "a"], [""]):
        with pytest.raises(ValidationError):
            TagFormat(tags=wrong)


SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"], "additionalProperties": false}'


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"n": 1}', 1),
        (' ```json\n{"n": 1}\n``` ', 1),
        ('```\n{"n": 2}\n```', 1),
        ('{"n": 0}', 0),
        ('{"n": 1.5}', 0),
        ('{"n": true}', 0),  # Python's bool is an int, JSON's is not
        ("{}", 0),
        ('{"n": 1, "m": 2}', 0),
        ('{"n": 1, "n": 1}', 0),
        ('{"n": NaN}', 0),
        ('Here: {"n": 1}', 0),
        ('```json\n{"n": 1}\n```\n```json\n{"n": 1}\n```', 0),
        ("{'n': 1}", 0),
        ("[" * 200_000, 0),
        ("9" * 5000, 0),
        ("", 0),
    ],
)
def test_json_fits_its_schema_bare_or_fenced(text, fits):
    assert one(JSON(JSONFormat(json_schema=SCHEMA)), text) == fits


def test_any_json_fits_the_empty_schema_but_not_infinity():
    assert one(JSON(JSONFormat()), "3") == 1
    assert one(JSON(JSONFormat()), "Infinity") == 0


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "it is not JSON"),
        ("[]", "no JSON Schema"),
        ('{"type": "integr"}', r"no JSON Schema: at \$\.type"),
        ('{"properties": {"a": {"minimum": "1"}}}', r"at \$\.properties\.a\.minimum"),
        ('{"$ref": "https://example.org/schema"}', "nothing is fetched"),
        ('{"$ref": "#/$defs/none"}', "is not in the schema"),
        ('{"patternProperties": {"^a": {}}}', "patternProperties is not checked here"),
        ('{"pattern": "(a"}', r"at \$\.pattern, '\(a' is not a 'regex'"),
        ('{"properties": {"a": {"pattern": "a{1000000000}"}}}', "more than 100,000 times"),
    ],
)
def test_a_schema_that_cannot_work_is_refused_with_the_spec(schema, said):
    with pytest.raises(ValidationError, match=said):
        JSONFormat(json_schema=schema)


def test_references_within_the_schema_are_followed():
    scorer = JSON(JSONFormat(json_schema='{"$ref": "#/$defs/n", "$defs": {"n": {"const": 3}}}'))
    assert [one(scorer, "3"), one(scorer, "4")] == [1, 0]


def test_patterns_match_the_whole_or_anywhere():
    assert one(Pattern(PatternFormat(pattern=r"\d+ apples")), "12 apples") == 1
    assert one(Pattern(PatternFormat(pattern=r"\d+ apples")), "I have 12 apples") == 0
    assert one(Pattern(PatternFormat(pattern=r"\d+ apples", whole=False)), "I have 12 apples.") == 1


def test_a_pattern_that_is_none_is_refused_with_its_position():
    with pytest.raises(ValidationError, match=r"no regular expression: unterminated character set at position 2"):
        PatternFormat(pattern="a([b")


@pytest.mark.parametrize(
    "scorer",
    [
        Pattern(PatternFormat(pattern=r"(a|aa)+$")),
        JSON(JSONFormat(json_schema='{"pattern": "^(a|aa)+$"}')),
    ],
)
def test_a_pattern_that_would_take_years_has_no_answer(scorer):
    hostile = "a" * 200 + "b"
    start = time.monotonic()
    assert one(scorer, hostile if isinstance(scorer, Pattern) else f'"{hostile}"') is None
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "pattern",
    ["a{4294967294}", "(?x)a{ 100000000 , }", "(?:(?:a{1000}){1000}){1000}", "a{99999999999}", "(" * 499 + ")" * 499],
)
def test_a_pattern_that_fills_the_memory_when_it_is_compiled_is_refused_with_the_spec(pattern):
    with pytest.raises(ValidationError, match=r"more than 100,000 times|can be compiled"):
        PatternFormat(pattern=pattern)


def test_ordinary_counts_are_taken():
    assert one(Pattern(PatternFormat(pattern=r"\d{4}-\d{2}-\d{2}: .{1,5000}")), "2024-05-06: yes") == 1
