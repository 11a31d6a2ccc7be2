"""Commands on the studio's own machine, beside its database: run it, migrate, walk through the demo, let people in."""

import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from backend import __version__
from backend.cli.asking import local_address
from backend.cli.printing import table

admin_app = typer.Typer(
    help="On the studio's own machine, beside its database: links that let people in.", no_args_is_help=True
)


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def up(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own reach other people.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port of the web; without it 8400, or the next one that is free.")
    ] = None,
    demo: Annotated[bool, typer.Option(help="Fill the demo project on first start.")] = True,
) -> None:
    """Run the whole studio here: servers, web, worker and beat, until Ctrl-C."""
    from backend import supervisor
    from backend.settings import Settings

    raise typer.Exit(supervisor.up(Settings(), host=host, port=port, demo=demo))


def migrate(revision: Annotated[str, typer.Option(help="Revision to go to.")] = "head") -> None:
    """Bring the database at DATABASE_URL up to date; production runs this once per release."""
    from backend import migrate as migrations

    migrations.upgrade(_database_url(), revision)
    typer.echo("The database is up to date.")


def demo() -> None:
    """Do by command what a person would do in the browser: judgments → version → SFT → reward model → DPO."""
    from backend.demo import seed, walk

    with _database() as session:
        guests = walk.let_in(session)
    if guests is None:
        typer.secho(f"The demo project “{seed.PROJECT}” is not there.", fg="red", err=True)
        typer.echo("→ `studio up` makes it on the first start, unless it was told not to.", err=True)
        raise typer.Exit(4)
    raise typer.Exit(walk.main(local_address(), guests))


def _database_url() -> str:
    """DATABASE_URL, or the embedded database of the studio that runs in this folder."""
    from backend.settings import Settings

    settings = Settings()
    if "database_url" not in settings.model_fields_set:
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((settings.studio_home / "state.json").read_text())
            return f"postgresql+psycopg://studio:{state['password']}@127.0.0.1:{state['postgres']}/studio"
    return settings.database_url


@contextlib.contextmanager
def _database() -> Iterator[Any]:
    from sqlalchemy.exc import OperationalError

    from backend.db import connect, make_sessions, unit_of_work
    from backend.errors import StudioError

    engine = connect(_database_url())
    try:
        with unit_of_work(make_sessions(engine)) as session:
            yield session
    except OperationalError as error:
        typer.secho("The database does not answer.", fg="red", err=True)
        typer.echo("→ Start the studio first, or set DATABASE_URL.", err=True)
        raise typer.Exit(5) from error
    except StudioError as error:
        typer.secho(error.detail, fg="red", err=True)
        typer.echo(f"→ {error.remedy}", err=True)
        raise typer.Exit(1) from error
    finally:
        engine.dispose()


@admin_app.command("create-link")
def create_link(
    email: Annotated[
        str | None, typer.Option(help="Somebody who has an account already and lost the password.")
    ] = None,
) -> None:
    """Print a one-time link: to create the first admin, or (--email) to set a new password. It works for 30 minutes."""
    from backend.accounts import service

    with _database() as session:
        path = service.make_rescue_link(session, email) if email else service.make_setup_link(session)
    typer.echo(local_address().rstrip("/") + path)


@admin_app.command("list")
def list_people() -> None:
    """List everybody with an account."""
    from backend.accounts import service
    from backend.accounts.actors import Actor

    with _database() as session:
        people = service.list_people(session, Actor(0, "console", is_admin=True))
        table(
            ((one.id, one.name, one.email, "admin" if one.is_admin else "", "" if one.is_active else "kept out") for one in people),
            "id", "name", "email", "", "",
        )  # fmt: skip
