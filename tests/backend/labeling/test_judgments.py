"""The vocabulary of answers."""

from uuid import uuid4

import pytest

from backend.labeling.judgments import ComparisonSubmission, TieKind


def test_unset_is_not_a_tie() -> None:
    with pytest.raises(ValueError, match="point"):
        ComparisonSubmission.model_validate({"kind": "comparison", "idempotency_key": str(uuid4())})
    with pytest.raises(ValueError, match="tie"):
        ComparisonSubmission(idempotency_key=uuid4(), point=4)
    with pytest.raises(ValueError, match="tie"):
        ComparisonSubmission(idempotency_key=uuid4(), point=5, tie_kind=TieKind.BOTH_BAD)
    assert ComparisonSubmission(idempotency_key=uuid4(), point=4, tie_kind=TieKind.BOTH_BAD).shown_strength == 0
