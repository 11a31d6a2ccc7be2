"""What commands print: a table for people, JSON for programs."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def table(rows: Iterable[Sequence[object]], *head: str) -> None:
    """Print *rows* under *head*; a column of numbers leans to the right."""
    lines = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    if not lines:
        typer.echo("none yet")
        return
    numeric = [
        all(line[n].replace(",", "").replace(".", "").isdigit() or not line[n] for line in lines)
        for n in range(len(head))
    ]
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    for line in [list(head), *lines]:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """Print *value* for programs."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def duration(seconds: float) -> str:
    """*seconds* as people say it: ``3 min 20 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{rest} s"
        if not minutes
        else f"{minutes} min {rest} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )
