"""A run as one readable Python file that needs only trl, transformers and peft, and reproduces the run's losses.

The file is a template per method in ``scripts/``, filled with the values of the spec; what TRL has no loss for, it brings
with it. ``tests/worker/recipes/test_export.py`` runs the files and compares losses step by step.
"""

import textwrap
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from backend.runs.specs import METHODS, AnySpec

_FOLDER = Path(__file__).parent / "scripts"
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets")

# Python, not HTML: nothing is escaped but through repr()
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    keep_trailing_newline=True, autoescape=False,
)  # fmt: skip
_TEMPLATES.filters["py"] = repr
_TEMPLATES.filters["fold"] = lambda text: textwrap.fill(text, 110)


def has_script(method: str) -> bool:
    """Whether runs of *method* can be exported."""
    return (_FOLDER / f"{method}.py.jinja").is_file()


def script(spec: AnySpec, *, title: str, packages: Mapping[str, str] | None = None) -> str:
    """The file's text. *packages* are the versions the run was made with; without them none are pinned."""
    pins = [
        f"{name}=={packages[name].partition('+')[0]}" if packages and name in packages else name for name in _PACKAGES
    ]
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
