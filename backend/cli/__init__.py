"""The composition root of the terminal: ``studio …``. Everything that concerns a project goes through the REST API, like a browser.

Exit codes: 0 done · 1 the studio refused, or the run failed · 2 wrong usage · 3 not signed in, or not allowed · 4 no such thing
· 5 no studio answers.
"""

import sys

import typer

from backend.cli import machine, projects, runs, signing_in
from backend.client import Refused, Unreachable

app = typer.Typer(
    help="Alignment Studio: human preferences become a better model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    machine.version,
    machine.up,
    machine.migrate,
    machine.demo,
    runs.workers,
    signing_in.login,
    signing_in.logout,
    signing_in.whoami,
):
    app.command()(command)
for name, part in {
    "projects": projects.projects_app,
    "datasets": projects.datasets_app,
    "runs": runs.runs_app,
    "models": projects.models_app,
    "labeling": projects.labeling_app,
    "admin": machine.admin_app,
}.items():
    app.add_typer(part, name=name)

EXIT = {401: 3, 403: 3, 404: 4, 503: 5}


def main() -> None:
    """Run the command line; errors become sentences and exit codes, never tracebacks."""
    try:
        app()
    except Refused as error:
        typer.secho(str(error), fg="red", err=True)
        if error.status == 401:
            typer.echo("→ `studio login` signs you in.", err=True)
        sys.exit(EXIT.get(error.status, 1))
    except Unreachable as error:
        typer.secho(str(error), fg="red", err=True)
        sys.exit(5)
