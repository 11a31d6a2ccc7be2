"""A policy learns to write whatever pays, and a text on which a verifier takes minutes stops a run.

Each text is as long as 10,000 tokens may be. Where time grows with its square, it takes far longer than is allowed here
(closing each of 5,000 boxes by a search of its own took 10 s).
"""

import time

import pytest

from backend.runs.specs.rewards import (
    Constraints,
    ExactAnswer,
    JSONFormat,
    LengthTerm,
    MathAnswer,
    NumericAnswer,
    RepetitionTerm,
    TagFormat,
)
from worker.rewards import answers, constraints, formats, length
from worker.rewards.mathematics import reference, statement
from worker.rewards.programs import program
from worker.rewards.rollouts import Rollout

LONG = 40_000

PIECES = [
    "a", "9", " ", "\n", ".", "*", "[", "{", "`", '"', "<", "\\", "-", "#",
    "1,", "1,111", ",111", "1/", "1 1", "-1", "$-", "½", "9" * 500 + " ",
    "<answer>", "</answer>", "<think>", r"\boxed{", r"\boxed{}", "answer ", "\nA", ". ", ".*", "Mr. ", "!?\"",
    "```\n", "```x\n", "~~~\n```\n", " ```", "<<", "<<a", "**", "* ", "*a", "\n* ", "P.S.", "\nP.", "[a", "Section 1", "a b ",
]  # fmt: skip

ROW = {
    "answer": "18",
    "constraints": [
        {"id": "detectable_content:postscript", "postscript_marker": "P.S."},
        {"id": "detectable_content:number_placeholders", "num_placeholders": 1},
        {"id": "detectable_format:number_bullet_lists", "num_bullets": 1},
        {"id": "detectable_format:number_highlighted_sections", "num_highlights": 1},
        {"id": "detectable_format:multiple_sections", "section_spliter": "Section", "num_sections": 1},
        {"id": "detectable_format:title"},
        {"id": "detectable_format:json_format"},
        {"id": "combination:two_responses"},
        {"id": "length_constraints:number_sentences", "num_sentences": 1, "relation": "at least"},
        {"id": "length_constraints:number_paragraphs", "num_paragraphs": 1},
        {
            "id": "length_constraints:nth_paragraph_first_word",
            "num_paragraphs": 1,
            "nth_paragraph": 1,
            "first_word": "a",
        },
        {"id": "change_case:capital_word_frequency", "capital_frequency": 1, "capital_relation": "at least"},
        {"id": "keywords:forbidden_words", "forbidden_words": ["b"]},
    ],
}

SCORERS = [
    *(answers.Number(NumericAnswer(answer=where)) for where in answers._PLACES),
    answers.Exact(ExactAnswer(answer="boxed")),
    formats.Tags(TagFormat()),
    formats.JSON(JSONFormat()),
    constraints.Instructions(Constraints()),
    length.Repetition(RepetitionTerm()),
    length.Length(LengthTerm()),
]


@pytest.mark.parametrize("piece", PIECES)
def test_no_text_takes_long_to_verify(piece):
    for text in (piece * (LONG // len(piece)), "x" + piece * (LONG // len(piece)) + "x"):
        rollout = Rollout(prompt="?", completion=text, row=ROW)
        start = time.process_time()
        for scorer in SCORERS:
            assert scorer.score([rollout])[0] is not None
        program(rollout)
        reference(text)
        statement(text, MathAnswer())
        assert time.process_time() - start < 4
