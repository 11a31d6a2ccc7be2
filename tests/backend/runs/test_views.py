"""What pages say about specs and points."""

from collections.abc import Mapping
from typing import Any

import pytest

from backend.demo import specs as demo
from backend.runs import glossary, specs, views

SIGMOID = specs.DPOSpec(base_model=1, dataset=2)
IPO = specs.DPOSpec(base_model=1, dataset=3, beta=0.3, loss=specs.IPO(), weights=specs.LoRA(rank=4))


def test_leaves_reach_every_field_and_know_what_was_changed() -> None:
    found = {leaf.path: leaf for leaf in views.leaves(IPO)}
    assert found["beta"].changed
    assert found["beta"].default == 0.1
    assert found["loss.kind"].changed
    assert found["loss.kind"].default == "sigmoid"
    assert found["weights.rank"].changed
    assert not found["weights.alpha"].changed
    assert not found["dataset"].changed, "what has no default cannot differ from it"
    assert found["beta"].means.startswith("β, the strength")
    assert "loss.label_smoothing" not in found, "a field of the other loss does not exist"


def _nested(method: str, values: Mapping[str, Any]) -> Any:
    """A preset as a spec: ``"weights": "lora"`` chooses the kind, ``"weights.rank"`` a field below it."""
    spec: dict[str, Any] = {"method": method, "base_model": 1, "dataset": 1}
    for path, value in values.items():
        *parents, last = path.split(".")
        place = spec
        for parent in parents:
            place = place.setdefault(parent, {"kind": "sigmoid"} if parent == "loss" else {})
        place[last] = {"kind": value} if path == "weights" else value
    return specs.SPEC.validate_python(spec)


@pytest.mark.parametrize("method", specs.METHODS)
def test_every_method_has_valid_presets_charts_and_a_deciding_metric(method: str) -> None:
    for preset in views.PRESETS[method]:
        _nested(method, preset.values)
    keys = [key for chart in glossary.DECISIVE[method] for key, _ in chart.keys]
    assert glossary.DECIDES[method] in keys
    assert all(glossary.bare(key) in glossary.MEANINGS for key in keys)
    assert any(choice.method == method for choice in views.CHOICES)


@pytest.mark.parametrize("method", specs.METHODS)
def test_the_tiny_presets_are_the_specs_of_the_demo(method: str) -> None:
    made = getattr(demo, method)
    presets = {preset.name: preset.values for preset in views.PRESETS[method]}
    assert _nested(method, presets["Tiny model"]) == made(1, 1)
    assert _nested(method, presets["Tiny, LoRA"]) == made(1, 1, weights=specs.LoRA())


def test_compare_shows_only_what_differs() -> None:
    rows, fields = views.differences([SIGMOID, IPO, SIGMOID], {("dataset", 2): "pairs v1", ("dataset", 3): "pairs v2"})
    by_name = {row.name: row.cells for row in rows}
    assert fields > 20
    assert "optimization.steps" not in by_name
    assert "method" not in by_name
    assert [cell.value for cell in by_name["dataset"]] == ["pairs v1", "pairs v2", "pairs v1"]
    assert [cell.odd for cell in by_name["beta"]] == [False, True, False]
    assert by_name["loss.label_smoothing"][1].value is None, "does not apply to IPO"
    assert by_name["dataset"][1].href == "/versions/3"


def test_with_two_runs_nothing_is_odd() -> None:
    rows, _ = views.differences([SIGMOID, IPO])
    assert rows
    assert not any(cell.odd for row in rows for cell in row.cells)


def test_changes_put_the_deciding_metric_first_and_leave_out_what_was_not_measured() -> None:
    series: dict[str, glossary.Series] = {
        "eval_loss": [(0, 0.69), (100, 0.4)],
        "eval_rewards/accuracies": [(0, 0.5), (100, 0.8)],
        "eval_runtime": [(0, 1.0)],
        "loss": [(10, 0.6)],
    }
    found = views.changes("dpo", series)
    assert [change.key for change in found] == ["eval_rewards/accuracies", "eval_loss"]
    assert found[0].difference == pytest.approx(0.3)
    assert views.changes("dpo", {"eval_loss": [(0, 0.69)]})[0].after is None, "measured once is no change"


def test_best_is_marked_by_direction_and_only_where_there_is_one() -> None:
    first = ("dpo", {"eval_loss": [(9, 0.4)], "eval_rewards/accuracies": [(9, 0.8)]}, False)
    second = ("dpo", {"eval_loss": [(9, 0.3)]}, True)
    by_key = {row.key: row.cells for row in views.finals([first, second])}
    assert [cell.best for cell in by_key["eval_loss"]] == [False, True]
    assert by_key["eval_loss"][1].so_far
    assert [(cell.value, cell.best) for cell in by_key["eval_rewards/accuracies"]] == [(0.8, False), (None, False)]


def test_lineage_is_drawn_inside_its_frame() -> None:
    graph = views.draw(
        ("#3", "dpo", "/runs/3"), [("model", "a", "", "/m"), ("data", "b", "", "/v")], [("c", "", "/m2")]
    )
    assert [node.kind for node in graph.nodes] == ["run", "model", "data", "model"]
    assert len(graph.edges) == 3
    assert all(15 <= node.y <= graph.height - 15 for node in graph.nodes)
