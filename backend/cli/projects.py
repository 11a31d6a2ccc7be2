"""Commands about projects and what they hold: datasets, models, labeling sessions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.asking import Project, project_id, signed_in
from backend.cli.printing import AsJson, print_json, table

projects_app = typer.Typer(help="Projects and their members.", no_args_is_help=True)
datasets_app = typer.Typer(help="Datasets: import files, list versions, download rows.", no_args_is_help=True)
models_app = typer.Typer(help="Models in the registry.", no_args_is_help=True)
labeling_app = typer.Typer(
    help="Labeling sessions: list, freeze judgments into a dataset version.", no_args_is_help=True
)


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
    as_json: AsJson = False,
) -> None:
    """Import a file as a new dataset version. A bad row is named by its line, and then nothing is kept."""
    mapping = _mapping(map_, row_type) if map_ else None
    with signed_in() as studio:
        made = studio.import_dataset(
            project_id(studio, project), file, name=name or file.name.split(".")[0], mapping=mapping, row_type=row_type
        )
        if as_json:
            return print_json(made)
        typer.echo(
            f"{made['dataset']}, version {made['number']} (id {made['id']}): {made['row_count']:,} {made['row_type']} rows   "
            f"{studio.url}/versions/{made['id']}"
        )


ROW_TYPES = {
    "chosen": "preference",
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
