"""What the pages of runs show, computed from a spec and from points: pure values, no tables, no web."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from backend.runs import glossary, meanings, specs
from backend.runs.diagnosis import Series

ABSENT = object()


def said(value: Any) -> str:
    """A spec's value as one writes it: ``True`` → ``on``, ``0.00001`` → ``1e-05``, white space in quotes."""
    if value is True or value is False:
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(said, value))
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, str) and value.isspace():
        return json.dumps(value)  # nobody sees white space that stands alone
    return "" if value is None else str(value)


def readable(path: str) -> str:
    """A dotted path as one reads it."""
    return path.replace(".", " › ")


@dataclass(frozen=True)
class Leaf:
    """One field of a spec, with the sentence that explains it."""

    path: str
    value: Any
    default: Any
    means: str

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    @property
    def indent(self) -> str:
        """The rest of the path, as one reads it: ``rewards › length ›``."""
        return readable(self.path.rpartition(".")[0]) + (" › " if "." in self.path else "")

    @property
    def changed(self) -> bool:
        """Whether it differs from its default; what has none (model, dataset) never does."""
        return self.default is not ABSENT and self.value != self.default


def _default(field: FieldInfo) -> Any:
    return ABSENT if field.is_required() else field.get_default(call_default_factory=True)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def leaves(spec: BaseModel, against: BaseModel | None = None, prefix: str = "") -> list[Leaf]:
    """Every field of *spec* by dotted path. *against* holds the defaults of a nested part, where the owner gives others."""
    found: list[Leaf] = []
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        path = f"{prefix}{name}"
        default = getattr(against, name) if against is not None and type(against) is type(spec) else _default(field)
        if isinstance(value, BaseModel):
            found += leaves(value, default if isinstance(default, BaseModel) else None, f"{path}.")
        elif isinstance(value, list) and value and all(isinstance(item, BaseModel) for item in value):
            for item in value:  # by their names, so that the same component of two runs is one field
                found += leaves(item, None, f"{prefix}{getattr(item, 'name', '') or getattr(item, 'kind', '')}.")
        elif isinstance(value, dict):
            found += [Leaf(f"{path}.{key}", one, ABSENT, field.description or "") for key, one in value.items()]
        elif name != "method":
            if name == "kind" and against is not None:
                default = getattr(against, "kind", ABSENT)
            means = field.description or (type(spec).__doc__ or "").strip()
            found.append(Leaf(path, _hashable(value), _hashable(default), means))
    return found


def parse(spec: Mapping[str, Any]) -> specs.AnySpec:
    """A stored spec as its class."""
    return specs.stored(spec)


@dataclass(frozen=True)
class Cell:
    """One run's value of a field in Compare."""

    value: str | None
    odd: bool
    """Whether it differs from what most of the runs have."""
    href: str | None = None


@dataclass(frozen=True)
class Differing:
    """A field that is not the same in all runs."""

    name: str
    cells: list[Cell]


HREFS = {"base_model": "/models/{}", "dataset": "/versions/{}"}


def href_of(path: str, value: Any) -> str | None:
    """Where a field's value leads: models and dataset versions have pages."""
    return HREFS[path].format(value) if path in HREFS else None


def differences(
    compared: Sequence[specs.TrainingSpec], named: Mapping[tuple[str, Any], str] | None = None
) -> tuple[list[Differing], int]:
    """Fields whose values differ between the specs, and how many fields there are. *named* puts words to ids: ``("dataset", 3)``."""
    values = [{"method": s.model_dump()["method"]} | {leaf.path: leaf.value for leaf in leaves(s)} for s in compared]
    paths = list(dict.fromkeys(path for of_run in values for path in of_run))
    rows = []
    for path in paths:
        given = [of_run.get(path, ABSENT) for of_run in values]
        if all(value == given[0] for value in given):
            continue
        usual = max(given, key=given.count)
        # with no majority nothing is odd
        has_usual = given.count(usual) > 1
        cells = []
        for value in given:
            odd = has_usual and value != usual
            words = None if value is ABSENT else (named or {}).get((path, value), said(value))
            cells.append(Cell(words, odd, None if value is ABSENT else href_of(path, value)))
        rows.append(Differing(readable(path), cells))
    return rows, len(paths)


@dataclass(frozen=True)
class Change:
    """A held-out metric before training and at the last evaluation."""

    key: str
    name: str
    better: meanings.Better
    before: float
    after: float | None
    """``None`` while it was measured only once."""
    first_step: int
    last_step: int

    @property
    def difference(self) -> float | None:
        """After minus before."""
        return None if self.after is None else self.after - self.before


def change(key: str, points: Series) -> Change | None:
    """First and last value of *key*; ``None`` if it was never measured."""
    if not points:
        return None
    known = meanings.meaning(key)
    (first, before), (last, after) = points[0], points[-1]
    return Change(key, known.name.lower(), known.better, before, after if len(points) > 1 else None, first, last)


def components(spec: specs.TrainingSpec, samples: Iterable[Any]) -> list[str]:
    """Names of what scored *samples*, in the order of the spec (the database keeps no order of keys)."""
    found = dict.fromkeys(name for sample in samples for name in sample.rewards)
    named = [name for name, _ in spec.rewards.named()] if isinstance(spec, specs.OnlineSpec) else []
    return [name for name in named if name in found] + [name for name in found if name not in named]


def expected(spec: specs.TrainingSpec) -> set[str]:
    """What a run will measure that its spec names: a page opened before the first point has charts for it already."""
    if isinstance(spec, specs.OnlineSpec):
        return {f"rewards/{name}/mean" for name, _ in spec.rewards.named()}
    if isinstance(spec, specs.AttributeRewardSpec):
        return {f"eval_pearson/{name}" for name in spec.attributes}
    return set()


def decided_rows(spec: specs.TrainingSpec, started: Mapping[str, Any]) -> int | None:
    """Of how many held-out rows accuracy is the share: ties are not asked. ``None`` if nobody said how many ties there are."""
    rows: int = started["held_out_rows"]
    ties: int | None = started.get("held_out_ties")
    if ties is None and isinstance(spec, specs.RewardSpec | specs.DPOSpec) and spec.use_probability:
        return None  # with probabilities ties are among the rows; without, they were left out before
    return rows - (ties or 0)


def reliability(series: Mapping[str, Series]) -> list[tuple[float, float]]:
    """(confidence, accuracy) of each bin at the last evaluation, least confident first; empty if it was not measured."""
    bins: list[tuple[float, float]] = []
    for index in itertools.count():
        confidence, accuracy = (series.get(f"eval_reliability/{name}_{index}") for name in ("confidence", "accuracy"))
        if not confidence or not accuracy:
            return bins
        bins.append((confidence[-1][1], accuracy[-1][1]))
    return bins


SPEED = ("_runtime", "_per_second")


def changes(method: str, series: Mapping[str, Series]) -> list[Change]:
    """All held-out metrics, the deciding one first, then as the decisive charts order them."""
    order = [glossary.DECIDES[method]] + [key for chart in glossary.DECISIVE[method] for key, _ in chart.keys]
    keys = [key for key in series if meanings.is_held_out(key) and not key.endswith(SPEED) and meanings.is_known(key)]
    keys.sort(key=lambda key: (order.index(key) if key in order else len(order), key))
    return [found for key in keys if (found := change(key, series[key])) is not None]


@dataclass(frozen=True)
class FinalCell:
    """One run's last value of a metric."""

    value: float | None
    best: bool
    so_far: bool


@dataclass(frozen=True)
class Final:
    """A held-out metric of several runs."""

    key: str
    name: str
    better: meanings.Better
    cells: list[FinalCell]


def finals(runs: Sequence[tuple[str, Mapping[str, Series], bool]]) -> list[Final]:
    """Last held-out values of (method, series, still running) per run; the best is marked where a direction is known."""
    keys = dict.fromkeys(found.key for method, series, _ in runs for found in changes(method, series))
    rows = []
    for key in keys:
        known = meanings.meaning(key)
        last = [series[key][-1][1] if series.get(key) else None for _, series, _ in runs]
        finite = [value for value in last if value is not None and math.isfinite(value)]
        best = None
        if len(finite) > 1 and len(set(finite)) > 1 and known.better in ("higher", "lower"):
            best = max(finite) if known.better == "higher" else min(finite)
        cells = [
            FinalCell(value, best is not None and value == best, running and value is not None)
            for value, (_, _, running) in zip(last, runs, strict=True)
        ]
        rows.append(Final(key, known.name, known.better, cells))
    return rows


def lines(chart: glossary.Chart, run_id: int) -> list[dict[str, Any]]:
    """The lines of *chart* for one run, as the ``<run-chart>`` island takes them."""
    alone = len(chart.keys) == 1
    return [
        {
            "run": run_id,
            "key": key,
            "label": "" if alone else label,
            "slot": 0 if alone else slot,
            "held_out": meanings.is_held_out(key),
        }
        for slot, (key, label) in enumerate(chart.keys, 1)
    ]


def overlaid(methods: Sequence[str], keys: Iterable[str] = ()) -> list[glossary.Chart]:
    """Charts that runs of these methods share, held-out values first: one metric each, so that lines are runs.

    *keys* are what the runs measured: with several rewards each is a chart too.
    """
    measured = list(keys)
    charts: dict[str, glossary.Chart] = {}
    for method in dict.fromkeys(methods):
        for chart in glossary.decisive(method, measured):
            for key, _ in sorted(chart.keys, key=lambda pair: not meanings.is_held_out(pair[0])):
                name = meanings.meaning(key).name + (", held out" if meanings.is_held_out(key) else "")
                charts.setdefault(key, glossary.Chart(name, ((key, ""),)))
    deciding = [glossary.DECIDES[method] for method in dict.fromkeys(methods)]
    wanted = sorted(
        charts,
        key=lambda key: (deciding.index(key) if key in deciding else len(deciding), not meanings.is_held_out(key)),
    )
    return [
        glossary.Chart(charts[key].title, charts[key].keys, wide=index == 0) for index, key in enumerate(wanted[:12])
    ]


@dataclass(frozen=True)
class Node:
    """A model, a run or a dataset version in the drawing of a lineage; *y* is its middle."""

    kind: str
    name: str
    sub: str
    href: str
    x: int
    y: int
    here: bool = False


@dataclass(frozen=True)
class Graph:
    """A drawing: what led to a run on the left, what it made on the right."""

    nodes: list[Node]
    edges: list[str]
    height: int


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    middle = (start[0] + end[0]) // 2
    return f"M{start[0]} {start[1]}C{middle} {start[1]} {middle} {end[1]} {end[0]} {end[1]}"


def _end(x: int, name: str, sub: str) -> int:
    """About where the words of a node at *x* end: no browser measures them here."""
    return x + 34 + int(7.4 * max(len(name), 0.9 * len(sub)))


def draw(
    run: tuple[str, str, str], sources: Sequence[tuple[str, str, str, str]], made: Sequence[tuple[str, str, str]]
) -> Graph:
    """*run* and *made* as (name, sub, href), *sources* as (kind, name, sub, href)."""
    rows = max(len(sources), len(made), 1)
    height = 60 * rows + 20
    middle = height // 2

    def column(count: int, index: int) -> int:
        return middle + int((index - (count - 1) / 2) * 60)

    nodes = [Node("run", *run, 460, middle, True)]
    edges = []
    for index, (kind, name, sub, href) in enumerate(sources):
        y = column(len(sources), index)
        nodes.append(Node(kind, name, sub, href, 10, y))
        edges.append(_edge((_end(10, name, sub), y), (452, middle)))
    for index, (name, sub, href) in enumerate(made):
        y = column(len(made), index)
        nodes.append(Node("model", name, sub, href, 790, y))
        edges.append(_edge((_end(460, run[0], run[1]), middle), (782, y)))
    return Graph(nodes, edges, height)
