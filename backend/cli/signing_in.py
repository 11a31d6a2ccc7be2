"""Commands that sign in and out, and say who one is."""

import contextlib
import os
from typing import Annotated
from urllib.parse import urlsplit

import typer

from backend.cli.asking import credentials, forget, local_address, remember, signed_in
from backend.cli.printing import AsJson, print_json
from backend.client import Refused, Studio, Unreachable


def login(
    url: Annotated[str | None, typer.Argument(help="Address of the studio; without it the one that runs here.")] = None,
    email: Annotated[str | None, typer.Option(help="E-mail address; asked for otherwise.")] = None,
    token: Annotated[
        str | None,
        typer.Option(help="An API token from the account page instead of a password.", envvar="STUDIO_TOKEN"),
    ] = None,
    days: Annotated[int, typer.Option(help="Days until the new token is over.", min=1, max=366)] = 30,
) -> None:
    """Sign in, and remember an API token in a file that only you can read."""
    url = (url or typer.prompt("Studio", default=local_address())).rstrip("/")
    if "://" not in url:
        url = f"http://{url}" if urlsplit(f"//{url}").hostname in ("localhost", "127.0.0.1") else f"https://{url}"
    with Studio(url, token) as studio:
        if token is None:
            email = email or typer.prompt("E-mail address")
            password = os.environ.get("STUDIO_PASSWORD") or typer.prompt("Password", hide_input=True)
            token = studio.sign_in(
                email, password, token_name=f"command line on {os.uname().nodename}"[:100], days=days
            )
        name = studio.me()["name"]
    path = remember(url, token)
    typer.echo(f"Signed in to {url} as {name}. The token is in {path}.")


def logout() -> None:
    """Revoke the remembered token and forget it."""
    known = credentials()
    if known.get("token"):
        with contextlib.suppress(Refused, Unreachable), Studio(known.get("url", ""), known["token"]) as studio:
            mine = [one for one in studio.items("/tokens") if one["prefix"] == known["token"][: len(one["prefix"])]]
            if len(mine) == 1:
                studio.call("DELETE", f"/tokens/{mine[0]['id']}")
    forget()
    typer.echo("Signed out.")


def whoami(as_json: AsJson = False) -> None:
    """Say who the remembered token belongs to."""
    with signed_in() as studio:
        me = studio.me()
        if as_json:
            return print_json(me)
        names = {str(project["id"]): project["name"] for project in studio.projects()}
    typer.echo(f"{me['name']} at {studio.url}{', admin' if me['is_admin'] else ''}")
    for project, role in me["roles"].items():
        typer.echo(f"  {role} in {names.get(project, project)}")
