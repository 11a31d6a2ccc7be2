"""Rows → Parquet → rows, whatever they hold; statistics against the plain way of counting."""

import hashlib
import itertools
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backend.datasets.rowfile import GROUP_ROWS, RowReader, RowWriter, canonical
from backend.datasets.rows import Row, RowType

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
others = st.dictionaries(st.sampled_from(["id", "n", "score", "meta", "flag"]), values, max_size=4)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}), min_size=1, max_size=4
)


def rows_of(text: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    pair = st.fixed_dictionaries(
        {"prompt": text, "chosen": text, "rejected": text}, optional={"margin": st.floats(-9, 9)}
    )
    return st.lists(st.builds(lambda a, b: {**b, **a}, pair, others), min_size=1, max_size=12)


def write(rows: list[Row], row_type: RowType = RowType.PREFERENCE) -> tuple[Any, list[Row]]:
    with tempfile.TemporaryDirectory() as folder:
        writer = RowWriter(Path(folder) / "rows.parquet", row_type)
        for row in rows:
            writer.add(row)
            # several groups, so that columns that change their mind are rewritten
            writer._flush() if len(rows) % 3 == 0 else None
        written = writer.close()
        with RowReader(written.path) as reader:
            return written, [row for _, row in reader.rows()]


@settings(max_examples=150, deadline=None)
@given(rows_of(texts) | rows_of(messages))
def test_rows_come_back_as_they_went(rows: list[Row]) -> None:
    written, read = write(rows)
    assert [canonical(row) for row in read] == [canonical(row) for row in rows]
    assert written.content_sha256 == hashlib.sha256(b"".join(canonical(row) + b"\n" for row in read)).hexdigest()
    assert written.rows == len(rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from(["a", "bb", ""])] * 3), min_size=1, max_size=40))
def test_statistics_are_what_one_counts_by_hand(triples: list[tuple[str, str, str]]) -> None:
    written, _ = write([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples])
    found = written.statistics
    assert found["duplicates"] == len(triples) - len(set(triples))
    assert found["prompts"] == len({p for p, _, _ in triples})
    assert found["chosen_is_rejected"] == sum(c == r for _, c, r in triples)
    assert found["contradictory"] == sum((p, r, c) in set(triples) and c != r for p, c, r in triples)
    longer, same = sum(len(c) > len(r) for _, c, r in triples), sum(len(c) == len(r) for _, c, r in triples)
    assert found["longer_wins"]["share"] == (longer + same / 2) / len(triples)
    assert found["longer_wins"]["low"] <= found["longer_wins"]["share"] <= found["longer_wins"]["high"]
    assert found["empty"]["chosen"] == sum(not c for _, c, _ in triples)
    assert sum(found["characters"]["chosen"]["bars"]) == len(triples)
    assert sum(found["difference"]["bars"]) == len(triples)


def test_the_longer_one_wins_only_where_one_is_better() -> None:
    """Seven pairs: a tie counts for neither, p < 1/2 for the other side, equal lengths half: (1 + 1 + 1 + 1/2)/6."""
    lengths = [(5, 2, None), (5, 2, 1.0), (2, 5, 0.25), (5, 2, 0.25), (5, 2, 0.5), (3, 3, 0.75), (2, 5, None)]
    written, _ = write(
        [{"prompt": "q", "chosen": "c" * c, "rejected": "r" * r, "probability": p} for c, r, p in lengths]
    )
    found = written.statistics
    longer = found["longer_wins"]
    assert (longer["chosen_longer"], longer["equally_long"], longer["decided"], found["ties"]) == (3, 1, 6, 1)
    assert longer["share"] == 3.5 / 6
    assert (found["difference"]["count"], found["difference"]["mean"]) == (6, (3 + 3 + 3 - 3 + 0 - 3) / 6)
    only_ties, _ = write([{"prompt": "q", "chosen": "c", "rejected": "rr", "probability": 0.5}])
    assert only_ties.statistics["longer_wins"]["share"] is None


def test_any_page_of_many_groups(tmp_path: Path) -> None:
    n = 3 * GROUP_ROWS + 17
    writer = RowWriter(tmp_path / "rows.parquet", RowType.PROMPT_ONLY)
    for number in range(n):
        writer.add({"prompt": f"question {number}"})
    written = writer.close()
    with RowReader(written.path) as reader:
        assert len(reader) == n
        for start, size in itertools.product(
            (0, 1, GROUP_ROWS - 1, GROUP_ROWS, 2 * GROUP_ROWS - 3, n - 1, n), (1, 5, GROUP_ROWS + 7)
        ):
            page = list(reader.rows(start, start + size))
            assert [(p, row["prompt"]) for p, row in page] == [
                (p, f"question {p}") for p in range(start, min(n, start + size))
            ]


def test_a_large_row_closes_its_group(tmp_path: Path) -> None:
    writer = RowWriter(tmp_path / "rows.parquet", RowType.PROMPT_ONLY)
    for number in range(40):
        writer.add({"prompt": str(number) * 500_000})
    writer.close()
    import pyarrow.parquet as pq

    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups >= 2


def test_steps_and_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Counted by hand: three steps of which two are right, one solution with a mistake; clear 1 and 3, kind 5."""
    stepwise = [
        {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]},
        {"prompt": "r", "completions": ["c"], "labels": [True]},
    ]
    writer = RowWriter(tmp_path / "steps.parquet", RowType.STEPWISE)
    for row in stepwise:
        writer.add(row)
    written = writer.close()
    assert written.columns == {"prompt": "text", "completions": "texts", "labels": "booleans"}
    assert not written.conversational
    assert written.statistics["steps"]["mean"] == 1.5
    assert (written.statistics["steps"]["right"], written.statistics["steps"]["solutions_with_a_mistake"]) == (2, 1)
    with RowReader(tmp_path / "steps.parquet") as reader:
        assert [row for _, row in reader.rows()] == stepwise

    scored = [
        {"prompt": "q", "completion": "a", "scores": {"clear": 1.0, "kind": 5.0}},
        {"prompt": "q", "completion": "b", "scores": {"clear": 3.0}},
    ]
    writer = RowWriter(tmp_path / "scores.parquet", RowType.SCORED)
    for row in scored:
        writer.add(row)
    written = writer.close()
    assert written.columns["scores"] == "json"
    assert written.statistics["scores"] == {
        "clear": {"count": 2, "min": 1, "max": 3, "mean": 2, "deviation": 1},
        "kind": {"count": 1, "min": 5, "max": 5, "mean": 5, "deviation": 0},
    }
    with RowReader(tmp_path / "scores.parquet") as reader:
        assert [row for _, row in reader.rows()] == scored
