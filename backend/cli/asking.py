"""Who is asking, and whom: the remembered credentials, the studio that is meant, and the project."""

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated

import typer

from backend.client import Studio

Project = Annotated[
    str | None, typer.Option("--project", "-p", help="Project, by name or number; not needed if you have one.")
]


def _credentials_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "alignment-studio" / "credentials.json"


def credentials() -> dict[str, str]:
    """``url`` and ``token`` that the last sign-in left; empty if nobody signed in, or the file cannot be read."""
    try:
        found = json.loads(_credentials_file().read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def remember(url: str, token: str) -> Path:
    """Keep the token for *url* in a file that only its owner reads; written as a whole or not at all."""
    path = _credentials_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"url": url, "token": token}, file)
    new.replace(path)
    return path


def forget() -> None:
    """Remember nobody any more."""
    _credentials_file().unlink(missing_ok=True)


def local_address() -> str:
    """Where the studio of this folder runs, if ``studio up`` said so."""
    from backend.settings import Settings

    with contextlib.suppress(OSError, ValueError):
        address = json.loads((Settings().studio_home / "state.json").read_text()).get("address")
        if isinstance(address, str):
            return address
    return Settings().public_url


def signed_in() -> Studio:
    """The studio that is meant, asked in the name of whoever signed in; ends the command if nobody did."""
    known = credentials()
    url = os.environ.get("STUDIO_URL") or known.get("url") or local_address()
    token = os.environ.get("STUDIO_TOKEN") or (known.get("token") if url == known.get("url") else None)
    if token is None:
        typer.secho(f"You are not signed in to {url}.", fg="red", err=True)
        typer.echo("→ `studio login` signs you in; programs set STUDIO_URL and STUDIO_TOKEN.", err=True)
        raise typer.Exit(3)
    return Studio(url, token)


def project_id(studio: Studio, wanted: str | None) -> int:
    """The project *wanted* by name or number, or the only one there is; ends the command if that is no answer."""
    found = studio.projects()
    wanted = wanted or os.environ.get("STUDIO_PROJECT")
    chosen = found if wanted is None else [one for one in found if wanted in (str(one["id"]), one["name"])]
    if len(chosen) == 1:
        return int(chosen[0]["id"])
    names = ", ".join(f"{one['name']} ({one['id']})" for one in found) or "none"
    reason = f"There is no project “{wanted}”." if wanted else "Say which project."
    typer.secho(reason, fg="red", err=True)
    typer.echo(f"→ Yours: {names}. Use --project.", err=True)
    raise typer.Exit(2)
