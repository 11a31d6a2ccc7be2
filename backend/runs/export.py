"""A run as one readable Python file that needs only trl, transformers and peft, and reproduces the run's losses.

The file is a template per method in ``scripts/``, filled with the values of the spec. What TRL has no loss for, it brings
with it: the functions' own source, read from the worker's files, so that there is one truth. ``tests/worker/recipes/test_export.py`` runs the files and compares losses step by step.
"""

import ast
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from backend.errors import Conflict
from backend.runs.specs import METHODS, AnySpec, OneDevice, OnlineSpec, PPOSpec, QLoRA, ValueModel
from backend.runs.specs.rewards import (
    ExactAnswer,
    LengthTerm,
    NumericAnswer,
    RepetitionTerm,
    RewardModelScore,
    SoftOverlong,
    TagFormat,
)

_FOLDER = Path(__file__).parent / "scripts"
_VERSION = re.compile(r"[0-9][0-9A-Za-z.]{0,30}")
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")

# Python, not HTML: nothing is escaped but through repr()
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip
_TEMPLATES.filters["py"] = repr
_TEMPLATES.filters["index_in"] = lambda one, of: of.index(one)
_TEMPLATES.filters["fold"] = lambda text: textwrap.fill(text, 110)


def _source(path: str, *names: str) -> str:
    """The source of top-level functions, classes and constants *names* of a file of the worker, in the file's order."""
    text = (Path(__file__).parents[2] / "worker" / path).read_text()
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                start = node.lineno
            case _:
                continue
        if name in names:
            found[name] = "\n".join(text.splitlines()[start - 1 : node.end_lineno])
    missing = set(names) - set(found)
    if missing:
        raise LookupError(f"worker/{path} has no {', '.join(sorted(missing))}")
    return "\n\n\n".join(found.values())


_TEMPLATES.globals["source"] = _source


_SCORED_HERE = (ExactAnswer, NumericAnswer, TagFormat, LengthTerm, SoftOverlong, RepetitionTerm, RewardModelScore)
"""Components that a script can carry with it: the others need libraries, a sandbox, or the studio's way to read steps."""


def obstacle(spec: AnySpec) -> str | None:
    """Why *spec* has no script, as a sentence; ``None`` if it has one."""
    if isinstance(spec, OnlineSpec):
        for name, component in spec.rewards.named():
            if not isinstance(component, _SCORED_HERE):
                return f"The reward component “{name}” needs more than a script can carry: run it in the studio."
    if isinstance(spec, PPOSpec) and isinstance(spec.value, ValueModel):
        return "A value model with a backbone of its own is not in the script; a value head is."
    if isinstance(spec.weights, QLoRA):
        return "Weights in 4 bits are not in the script; LoRA is."
    if not isinstance(spec.devices, OneDevice):
        return "Scripts run on one device."
    return None


def script(spec: AnySpec, *, title: str, packages: Mapping[str, str] | None = None) -> str:
    """The file's text. *packages* are the versions the run was made with; without them none are pinned.

    Raises :class:`Conflict` if there is an :func:`obstacle`.
    """
    if reason := obstacle(spec):
        raise Conflict(reason)
    known = {name: _VERSION.match((packages or {}).get(name, "")) for name in _PACKAGES}  # what a worker said is text
    pins = [f"{name}=={version[0]}" if version else name for name, version in known.items()]
    return _TEMPLATES.get_template(f"{spec.method}.py.jinja").render(
        spec=spec,
        title=" ".join(title.split()).replace('"""', "'''").replace("\\", "/"),
        about=(METHODS[spec.method].__doc__ or "").strip(),
        needs=" ".join(pins),
        schedule={"constant": "constant_with_warmup"}.get(spec.optimization.schedule, spec.optimization.schedule),
    )


def file_name(run_id: int, spec: AnySpec) -> str:
    """What the file is called."""
    return f"run-{run_id}-{spec.method.replace('_', '-')}.py"
