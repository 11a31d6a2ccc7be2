"""What pages say about specs and points."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from backend.demo import specs as demo
from backend.runs import glossary, meanings, presets, specs, views
from backend.runs.diagnosis import Series

SIGMOID = specs.DPOSpec(base_model=1, dataset=2)
ANSWER = {"kind": "number", "column": "answer"}
REWARD: dict[str, Any] = {"rewards": {"components": [ANSWER]}}
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


def _spec(method: str, values: Mapping[str, Any]) -> Any:
    """A preset as a spec, over what has no default, with a reward model put in as the form does."""
    document: dict[str, Any] = {"method": method, "base_model": 1, "dataset": 1}
    if method == "attribute_reward":
        document["attributes"] = {"helpful": 1.0}
    for path, value in values.items():
        *parents, last = path.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    for component in document.get("rewards", {}).get("components", []):
        if component["kind"] == "reward_model":
            component["models"] = component["models"] or [7]
    return specs.SPEC.validate_python(document)


def _chosen(method: str) -> Iterator[Mapping[str, Any]]:
    """Every choice of one preset per group."""
    for chosen in itertools.product(*(group.presets for group in presets.PRESETS[method])):
        yield {path: value for preset in chosen for path, value in preset.values.items()}


@pytest.mark.parametrize("method", specs.METHODS)
def test_every_choice_of_presets_is_a_valid_spec(method: str) -> None:
    for values in _chosen(method):
        _spec(method, copy.deepcopy(values))
    groups = presets.PRESETS[method]
    owned = [{path for preset in group.presets for path in preset.values} for group in groups]
    for one, other in itertools.combinations(owned, 2):
        assert not one & other, "two groups of presets would overrule each other"


@pytest.mark.parametrize("method", specs.METHODS)
def test_every_method_has_charts_a_deciding_metric_a_way_to_it_and_an_equation(method: str) -> None:
    keys = [key for chart in glossary.DECISIVE[method] for key, _ in chart.keys]
    assert glossary.DECIDES[method] in keys
    assert all(meanings.is_known(key) for key in keys)
    assert meanings.meaning(glossary.DECIDES[method]).better in ("higher", "lower")
    assert presets.way(method).title
    assert presets.EQUATIONS[method].lines


@pytest.mark.parametrize("method", specs.METHODS)
def test_the_tiny_presets_are_the_specs_of_the_demo(method: str) -> None:
    """But for what is good: that is chosen by itself."""
    known: dict[str, Any] = {"reward_model": 7} if method == "ppo" else {}
    made = partial(getattr(demo, method), 1, 1, **known)
    sizes = {
        preset.name: preset.values
        for group in presets.PRESETS[method]
        if group.name == "Size"
        for preset in group.presets
    }
    apart = {"rewards", "attributes"}
    good: dict[str, Any] = REWARD if "rewards" in specs.METHODS[method].model_fields else {}
    tiny = _spec(method, {**good, **sizes["Tiny model"]})
    assert tiny.model_dump(exclude=apart) == made().model_dump(exclude=apart)
    if "Tiny, LoRA" in sizes:
        values = sizes["Tiny, LoRA"]
        lora = _spec(method, {**good, **values})
        assert lora.model_dump(exclude=apart) == made(weights=specs.LoRA()).model_dump(exclude=apart)


def test_variants_of_grpo_are_what_their_papers_say() -> None:
    chosen = {preset.name: preset.values for preset in presets.VARIANTS.presets}
    made = {name: _spec("grpo", dict(values) | REWARD) for name, values in chosen.items()}
    assert made["Dr. GRPO"].advantage.scale == "none"
    assert made["Dr. GRPO"].average == "constant"
    assert isinstance(made["DAPO"].groups, specs.Resample)
    assert (made["DAPO"].clip_low, made["DAPO"].clip_high, made["DAPO"].drop_unfinished) == (0.2, 0.28, True)
    assert made["GSPO"].ratio == "sequence"
    assert made["RLOO"].kl.place == "reward"
    assert made["GRPO (DeepSeekMath)"].kl.beta.beta == 0.04


def test_components_are_fields_by_their_names() -> None:
    length = {"kind": "length", "weight": 0.5, "target": 64}
    one = _spec("grpo", {"rewards": {"components": [ANSWER, length]}})
    other = _spec("grpo", {"rewards": {"components": [ANSWER, length | {"weight": 0.25}]}})
    rows, _ = views.differences([one, other])
    assert [(row.name, [cell.value for cell in row.cells]) for row in rows] == [
        ("rewards › length › weight", ["0.5", "0.25"])
    ]
    alone = _spec("grpo", {"rewards": {"components": [ANSWER]}})
    rows, _ = views.differences([one, alone])
    assert all(row.name.startswith("rewards › length › ") and row.cells[1].value is None for row in rows)
    scorer = _spec("ppo", {"rewards": {"components": [{"kind": "reward_model", "models": [3, 4]}]}})
    assert views.said(next(leaf.value for leaf in views.leaves(scorer) if leaf.name == "models")) == "3, 4"
    assert [views.said(value) for value in ("\n", " ", "a b", "")] == ['"\\n"', '" "', "a b", ""], "white space is seen"
    attributes = specs.AttributeRewardSpec(base_model=1, dataset=1, attributes={"helpful": 2.0})
    assert {leaf.path for leaf in views.leaves(attributes)} >= {"attributes.helpful"}


def test_compare_shows_only_what_differs() -> None:
    rows, fields = views.differences([SIGMOID, IPO, SIGMOID], {("dataset", 2): "pairs v1", ("dataset", 3): "pairs v2"})
    by_name = {row.name: row.cells for row in rows}
    assert fields > 20
    assert "optimization › steps" not in by_name
    assert "method" not in by_name
    assert [cell.value for cell in by_name["dataset"]] == ["pairs v1", "pairs v2", "pairs v1"]
    assert [cell.odd for cell in by_name["beta"]] == [False, True, False]
    assert by_name["loss › label_smoothing"][1].value is None, "does not apply to IPO"
    assert by_name["dataset"][1].href == "/versions/3"


def test_with_two_runs_nothing_is_odd() -> None:
    rows, _ = views.differences([SIGMOID, IPO])
    assert rows
    assert not any(cell.odd for row in rows for cell in row.cells)


def test_changes_put_the_deciding_metric_first_and_leave_out_what_was_not_measured() -> None:
    series: dict[str, Series] = {
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


def test_charts_that_the_spec_names_are_there_before_the_first_point() -> None:
    two = {"components": [{"kind": "pattern", "pattern": "x", "name": "form"}, ANSWER]}
    grpo = specs.GRPOSpec.model_validate({"base_model": 1, "dataset": 2, "rewards": two})
    titles = [chart.title for chart in glossary.decisive("grpo", views.expected(grpo))]
    assert "Rewards by component" in titles
    graded = specs.AttributeRewardSpec(base_model=1, dataset=2, attributes={"helpful": 1.0})
    titles = [chart.title for chart in glossary.decisive("attribute_reward", views.expected(graded))]
    assert "Correlation by attribute" in titles
    assert not views.expected(SIGMOID)


def test_specs_of_earlier_versions_stay_readable() -> None:
    pattern = {"kind": "pattern", "pattern": "x", "flags": "i"}
    grpo = specs.GRPOSpec.model_validate({"base_model": 1, "dataset": 2, "rewards": {"components": [ANSWER]}})
    document = grpo.model_dump(mode="json")
    document["evaluation"]["a_field_of_old"] = 48
    document["rewards"]["components"].append(pattern)
    found = views.parse(document)
    assert isinstance(found, specs.GRPOSpec)
    assert found.optimization == grpo.optimization
    assert [name for name, _ in found.rewards.named()] == ["number", "pattern"]
    with pytest.raises(ValueError, match="Extra inputs"):
        specs.SPEC.validate_python(document)
    document["optimization"]["steps"] = 0
    with pytest.raises(ValueError, match="greater than"):
        views.parse(document)


def test_ties_are_not_among_the_rows_of_an_accuracy() -> None:
    """128 held-out rows, 28 of them ties: 100. Who learns from probabilities and does not say how many ties: unknown."""
    soft = SIGMOID.model_copy(update={"use_probability": True})
    assert views.decided_rows(soft, {"held_out_rows": 128, "held_out_ties": 28}) == 100
    assert views.decided_rows(soft, {"held_out_rows": 128}) is None
    assert views.decided_rows(SIGMOID, {"held_out_rows": 128, "held_out_ties": None}) == 128
