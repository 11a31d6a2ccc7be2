"""Commands about projects and what they hold: datasets, models, labeling sessions."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.asking import Project, project_id, signed_in
from backend.cli.printing import AsJson, print_json, table
from backend.client import Refused

projects_app = typer.Typer(help="Projects and their members.", no_args_is_help=True)
datasets_app = typer.Typer(help="Datasets: import files, list versions, download rows.", no_args_is_help=True)
models_app = typer.Typer(help="Models in the registry.", no_args_is_help=True)
labeling_app = typer.Typer(
    help="Labeling sessions: list, freeze judgments into a dataset version.", no_args_is_help=True
)


class Ties(StrEnum):
    """What becomes of pairs of which neither side won."""

    LEAVE_OUT = "leave_out"
    HALF = "half"


# --- projects


@projects_app.command("list")
def list_projects(as_json: AsJson = False) -> None:
    """List your projects."""
    with signed_in() as studio:
        found = studio.projects()
    if as_json:
        return print_json(found)
    table(((one["id"], one["name"], one["goal"]) for one in found), "id", "name", "goal")


@projects_app.command("create")
def create_project(
    name: Annotated[str, typer.Argument()], goal: Annotated[str, typer.Option(help="One sentence to judge by.")] = ""
) -> None:
    """Make a project."""
    with signed_in() as studio:
        made = studio.create_project(name, goal)
    typer.echo(f"Project {made['id']}, {made['name']}: {studio.url}/?project={made['id']}")


# --- datasets


@datasets_app.command("list")
def list_datasets(project: Project = None, as_json: AsJson = False) -> None:
    """List the datasets of a project with their newest version."""
    with signed_in() as studio:
        found = list(studio.datasets(project_id(studio, project)))
    if as_json:
        return print_json(found)
    table((_dataset_line(one) for one in found), "id", "name", "version", "its id", "rows", "type")


def _dataset_line(dataset: Mapping[str, Any]) -> list[object]:
    newest = dataset.get("newest") or {}
    return [dataset["id"], dataset["name"], *(newest.get(key) for key in ("number", "id", "row_count", "row_type"))]


@datasets_app.command("import")
def import_dataset(
    file: Annotated[
        Path, typer.Argument(help="JSONL (also .gz), CSV or Parquet.", exists=True, dir_okay=False, readable=True)
    ],
    name: Annotated[
        str | None, typer.Option(help="Dataset; it gets a new version if it exists. Default: the file's name.")
    ] = None,
    project: Project = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="TARGET=COLUMN, as in --map prompt=question; may be repeated.")
    ] = None,
    row_type: Annotated[
        str | None, typer.Option("--type", help="Row type, such as preference; guessed from the columns otherwise.")
    ] = None,
    ties: Annotated[
        Ties,
        typer.Option(help="Pairs with a winner column that names neither side: leave them out, or keep them as half."),
    ] = Ties.LEAVE_OUT,
    as_json: AsJson = False,
) -> None:
    """Import a file as a new dataset version. A bad row is named by its line, and then nothing is kept."""
    mapping = _mapping(map_, row_type) if map_ else None
    with signed_in() as studio:
        try:
            to = project_id(studio, project)
            if ties is Ties.HALF:
                mapping = _with_ties(mapping or studio.likeliest_mapping(to, file, row_type))
            made = studio.import_dataset(
                to, file, name=name or file.name.split(".")[0], mapping=mapping, row_type=row_type
            )
        except Refused as error:
            raise Refused(in_options(error.problem)) from error
        if as_json:
            return print_json(made)
        typer.echo(
            f"{made['dataset']}, version {made['number']} (id {made['id']}): {made['row_count']:,} {made['row_type']} rows   "
            f"{studio.url}/versions/{made['id']}"
        )
        for line in how_it_was_read(made["origin"], guessed=not map_):
            typer.echo(line)


def in_options(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A refusal with the options of the command as its remedy, where the API's would be a mapping."""
    remedy = str(problem.get("remedy") or "")
    if not (str(problem.get("field", "")).startswith("mapping") or "mapping" in remedy or remedy.startswith("Map ")):
        return dict(problem)
    kinds = ", ".join(dict.fromkeys(ROW_TYPES.values()))
    said = "Say which column is which, as in --map prompt=question --map completion=answer"
    return {**problem, "remedy": f"{said}; --type is one of {kinds}."}


def how_it_was_read(origin: Mapping[str, Any], *, guessed: bool) -> list[str]:
    """Lines about an import: which column became what, and how many rows were left out and why."""
    mapping = origin["mapping"]
    columns: dict[str, str | list[str]] = mapping["columns"]
    parts = [
        f"{target} ← {column if isinstance(column, str) else ' + '.join(column)}" for target, column in columns.items()
    ]
    winner = mapping.get("winner")
    if winner:
        sides = f"{winner['first']}: {columns['chosen']}, {winner['second']}: {columns['rejected']}"
        parts.append(f"winner ← {winner['column']} ({sides})")
    lines = [("Guessed, change it with --map: " if guessed else "Read as: ") + " · ".join(parts)]
    for why, count in origin.get("left_out", {}).items():
        keep = "; --ties half keeps them" if why == TIE and winner else ""
        lines.append(f"Left out: {count:,} of {origin['read']:,} rows ({why}{keep})")
    return lines


def _with_ties(mapping: Mapping[str, Any]) -> dict[str, Any]:
    if not mapping.get("winner"):
        raise typer.BadParameter(
            "only pairs with a winner column, guessed without --map, have ties", param_hint="--ties"
        )
    return {**mapping, "winner": {**mapping["winner"], "ties": Ties.HALF.value}}


TIE = "neither side won"
"""The reason for which an import leaves ties out."""
ROW_TYPES = {
    "chosen": "preference",
    "completions": "stepwise",
    "scores": "scored",
    "label": "unpaired",
    "completion": "prompt_completion",
    "text": "language_modeling",
    "messages": "language_modeling",
    "prompt": "prompt_only",
}
"""What the rows are if this column is mapped; the first that fits counts."""


def _mapping(pairs: Sequence[str], row_type: str | None) -> dict[str, Any]:
    """``["prompt=question", …]`` as the mapping that the API takes."""
    columns: dict[str, str] = {}
    for pair in pairs:
        target, equals, column = pair.partition("=")
        if not (equals and target and column):
            raise typer.BadParameter(f"“{pair}” is not of the form TARGET=COLUMN", param_hint="--map")
        columns[target] = column
    guessed = next((kind for target, kind in ROW_TYPES.items() if target in columns), None)
    if row_type is None and guessed is None:
        raise typer.BadParameter(f"say which column is one of {', '.join(ROW_TYPES)}", param_hint="--map")
    return {"row_type": row_type or guessed, "columns": columns}


@datasets_app.command("download")
def download(
    version_id: Annotated[int, typer.Argument(help="Number of the dataset version.")],
    to: Annotated[Path | None, typer.Option("--to", help="File to write.")] = None,
) -> None:
    """Download the rows of a dataset version."""
    to = to or Path(f"version-{version_id}.jsonl")
    with signed_in() as studio:
        size = studio.download(version_id, to)
    typer.echo(f"{to}: {size:,} bytes")


# --- models


@models_app.command("list")
def list_models(project: Project = None, as_json: AsJson = False) -> None:
    """List the models of a project: base models, adapters, reward models, checkpoints."""
    with signed_in() as studio:
        found = list(studio.models(project_id(studio, project)))
    if as_json:
        return print_json(found)
    table(
        ((one["id"], one["name"], one["kind"], f"#{one['run_id']}" if one.get("run_id") else "", one.get("step")) for one in found),
        "id", "name", "kind", "run", "step",
    )  # fmt: skip


# --- labeling


@labeling_app.command("list")
def list_labeling(project: Project = None, as_json: AsJson = False) -> None:
    """List the labeling sessions of a project."""
    with signed_in() as studio:
        found = list(studio.labeling_sessions(project_id(studio, project)))
    if as_json:
        return print_json(found)
    table(
        ((one["id"], one["name"], one["state"], one["items"], one["overlap"], one.get("judgments")) for one in found),
        "id", "name", "state", "items", "overlap", "judgments",
    )  # fmt: skip


@labeling_app.command("freeze")
def freeze(
    labeling_session_id: Annotated[int, typer.Argument(help="Number of the labeling session.")],
    name: Annotated[str, typer.Option(help="Dataset that gets the version; made if it does not exist.")],
    ties: Annotated[str, typer.Option(help="drop or keep.")] = "drop",
    as_json: AsJson = False,
) -> None:
    """Turn judgments into a preference dataset version."""
    with signed_in() as studio:
        frozen = studio.freeze(labeling_session_id, name, {"ties": ties})
        if as_json:
            return print_json(frozen)
        typer.echo(
            f"Version {frozen['version_id']} with {frozen['rows']:,} rows: {studio.url}/versions/{frozen['version_id']}"
        )
