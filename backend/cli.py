"""The composition root of the terminal: ``studio …``. Everything that concerns a project goes through the REST API, like a browser.

Exit codes: 0 done · 1 the studio refused, or the run failed · 2 wrong usage · 3 not signed in, or not allowed · 4 no such thing
· 5 no studio answers.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from backend import __version__
from backend.client import FINISHED, Refused, Studio, Unreachable

app = typer.Typer(
    help="Alignment Studio: human preferences become a better model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
projects_app = typer.Typer(help="Projects and their members.", no_args_is_help=True)
datasets_app = typer.Typer(help="Datasets: import files, list versions, download rows.", no_args_is_help=True)
runs_app = typer.Typer(help="Runs: submit a spec, watch, cancel.", no_args_is_help=True)
models_app = typer.Typer(help="Models in the registry.", no_args_is_help=True)
labeling_app = typer.Typer(
    help="Labeling sessions: list, freeze judgments into a dataset version.", no_args_is_help=True
)
admin_app = typer.Typer(
    help="On the studio's own machine, beside its database: links that let people in.", no_args_is_help=True
)
for name, part in {
    "projects": projects_app,
    "datasets": datasets_app,
    "runs": runs_app,
    "models": models_app,
    "labeling": labeling_app,
    "admin": admin_app,
}.items():
    app.add_typer(part, name=name)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Project = Annotated[
    str | None, typer.Option("--project", "-p", help="Project, by name or number; not needed if you have one.")
]

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


# --- who is asking, and whom


def _credentials_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "alignment-studio" / "credentials.json"


def _credentials() -> dict[str, str]:
    try:
        found = json.loads(_credentials_file().read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}


def _remember(credentials: Mapping[str, str]) -> Path:
    path = _credentials_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(dict(credentials), file)
    new.replace(path)
    return path


def _local_address() -> str:
    """Where the studio of this folder runs, if ``studio up`` said so."""
    from backend.settings import Settings

    with contextlib.suppress(OSError, ValueError):
        address = json.loads((Settings().studio_home / "state.json").read_text()).get("address")
        if isinstance(address, str):
            return address
    return Settings().public_url


def _studio() -> Studio:
    known = _credentials()
    url = os.environ.get("STUDIO_URL") or known.get("url") or _local_address()
    token = os.environ.get("STUDIO_TOKEN") or (known.get("token") if url == known.get("url") else None)
    if token is None:
        typer.secho(f"You are not signed in to {url}.", fg="red", err=True)
        typer.echo("→ `studio login` signs you in; programs set STUDIO_URL and STUDIO_TOKEN.", err=True)
        raise typer.Exit(3)
    return Studio(url, token)


def _project(studio: Studio, wanted: str | None) -> int:
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


def _table(rows: Iterable[Sequence[object]], *head: str) -> None:
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


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


# --- the studio itself


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command()
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


@app.command()
def migrate(revision: Annotated[str, typer.Option(help="Revision to go to.")] = "head") -> None:
    """Bring the database at DATABASE_URL up to date; production runs this once per release."""
    from backend import migrate as migrations

    migrations.upgrade(_database_url(), revision)
    typer.echo("The database is up to date.")


@app.command()
def demo() -> None:
    """Do by command what a person would do in the browser: judgments → version → SFT → reward model → DPO."""
    from backend.demo import seed, walk

    with _database() as session:
        guests = walk.let_in(session)
    if guests is None:
        typer.secho(f"The demo project “{seed.PROJECT}” is not there.", fg="red", err=True)
        typer.echo("→ `studio up` makes it on the first start, unless it was told not to.", err=True)
        raise typer.Exit(4)
    raise typer.Exit(walk.main(_local_address(), guests))


@app.command()
def workers(as_json: AsJson = False) -> None:
    """List the workers and what they do."""
    with _studio() as studio:
        found = studio.workers()
    if as_json:
        return _print_json(found)
    _table(
        ((one.get("name"), _doing(one), _devices(one), _heard(one)) for one in found),
        "worker",
        "doing",
        "devices",
        "heard",
    )


def _doing(worker: Mapping[str, Any]) -> str:
    return " ".join([str(worker.get("state")), *(f"#{run}" for run in worker.get("runs") or [])])


def _devices(worker: Mapping[str, Any]) -> str:
    return ", ".join(device["name"] for device in worker.get("devices") or []) or str(worker.get("device"))


def _heard(worker: Mapping[str, Any]) -> str:
    seconds = worker.get("silent_seconds")
    return "" if seconds is None else f"{_duration(seconds)} ago"


# --- signing in


@app.command()
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
    url = (url or typer.prompt("Studio", default=_local_address())).rstrip("/")
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
    path = _remember({"url": url, "token": token})
    typer.echo(f"Signed in to {url} as {name}. The token is in {path}.")


@app.command()
def logout() -> None:
    """Revoke the remembered token and forget it."""
    known = _credentials()
    if known.get("token"):
        with contextlib.suppress(Refused, Unreachable), Studio(known.get("url", ""), known["token"]) as studio:
            mine = [one for one in studio.items("/tokens") if one["prefix"] == known["token"][: len(one["prefix"])]]
            if len(mine) == 1:
                studio.call("DELETE", f"/tokens/{mine[0]['id']}")
    _credentials_file().unlink(missing_ok=True)
    typer.echo("Signed out.")


@app.command()
def whoami(as_json: AsJson = False) -> None:
    """Say who the remembered token belongs to."""
    with _studio() as studio:
        me = studio.me()
        if as_json:
            return _print_json(me)
        names = {str(project["id"]): project["name"] for project in studio.projects()}
    typer.echo(f"{me['name']} at {studio.url}{', admin' if me['is_admin'] else ''}")
    for project, role in me["roles"].items():
        typer.echo(f"  {role} in {names.get(project, project)}")


# --- projects


@projects_app.command("list")
def list_projects(as_json: AsJson = False) -> None:
    """List your projects."""
    with _studio() as studio:
        found = studio.projects()
    if as_json:
        return _print_json(found)
    _table(((one["id"], one["name"], one["goal"]) for one in found), "id", "name", "goal")


@projects_app.command("create")
def create_project(
    name: Annotated[str, typer.Argument()], goal: Annotated[str, typer.Option(help="One sentence to judge by.")] = ""
) -> None:
    """Make a project."""
    with _studio() as studio:
        made = studio.create_project(name, goal)
    typer.echo(f"Project {made['id']}, {made['name']}: {studio.url}/?project={made['id']}")


# --- datasets


@datasets_app.command("list")
def list_datasets(project: Project = None, as_json: AsJson = False) -> None:
    """List the datasets of a project with their newest version."""
    with _studio() as studio:
        found = list(studio.datasets(_project(studio, project)))
    if as_json:
        return _print_json(found)
    _table((_dataset_line(one) for one in found), "id", "name", "version", "its id", "rows", "type")


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
    with _studio() as studio:
        made = studio.import_dataset(
            _project(studio, project), file, name=name or file.name.split(".")[0], mapping=mapping, row_type=row_type
        )
        if as_json:
            return _print_json(made)
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
    with _studio() as studio:
        size = studio.download(version_id, to)
    typer.echo(f"{to}: {size:,} bytes")


# --- models


@models_app.command("list")
def list_models(project: Project = None, as_json: AsJson = False) -> None:
    """List the models of a project: base models, adapters, reward models, checkpoints."""
    with _studio() as studio:
        found = list(studio.models(_project(studio, project)))
    if as_json:
        return _print_json(found)
    _table(
        ((one["id"], one["name"], one["kind"], f"#{one['run_id']}" if one.get("run_id") else "", one.get("step")) for one in found),
        "id", "name", "kind", "run", "step",
    )  # fmt: skip


# --- labeling


@labeling_app.command("list")
def list_labeling(project: Project = None, as_json: AsJson = False) -> None:
    """List the labeling sessions of a project."""
    with _studio() as studio:
        found = list(studio.labeling_sessions(_project(studio, project)))
    if as_json:
        return _print_json(found)
    _table(
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
    with _studio() as studio:
        frozen = studio.freeze(labeling_session_id, name, {"ties": ties})
        if as_json:
            return _print_json(frozen)
        typer.echo(
            f"Version {frozen['version_id']} with {frozen['rows']:,} rows: {studio.url}/versions/{frozen['version_id']}"
        )


# --- runs


@runs_app.command("list")
def list_runs(
    project: Project = None,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List the runs of a project, newest first."""
    with _studio() as studio:
        source = studio.runs(_project(studio, project))
        found = [one for _, one in zip(range(limit), source, strict=False)]
    if as_json:
        return _print_json(found)
    _table(
        ((one["id"], one.get("method"), one.get("name"), _state(one), _steps(one), one.get("worker")) for one in found),
        "id", "method", "name", "state", "step", "worker",
    )  # fmt: skip


@runs_app.command("show")
def show_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")], as_json: AsJson = False) -> None:
    """Show one run: state, progress, spec."""
    with _studio() as studio:
        run = studio.run(run_id)
    if as_json:
        return _print_json(run)
    typer.echo(f"#{run['id']} {run.get('name') or ''}  {_state(run)}  {_steps(run)}".rstrip())
    if _reason(run):
        typer.echo(_reason(run))
    typer.echo(f"{studio.url}/runs/{run['id']}")
    _print_json(run.get("spec"))


@runs_app.command("submit")
def submit_run(
    spec: Annotated[
        Path, typer.Argument(help="Spec as YAML or JSON; - reads standard input.", allow_dash=True, exists=True)
    ],
    project: Project = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace one value: --set loss.kind=ipo --set beta=0.3")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it ends.")] = False,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="Submitting twice with one key is one run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a run."""
    wanted = _read_spec(spec, set_ or [])
    with _studio() as studio:
        run = studio.submit_run(_project(studio, project), wanted, name=name, idempotency_key=key)
        if as_json and not watch:
            return _print_json(run)
        typer.echo(f"Run #{run['id']} is {run['state']}: {studio.url}/runs/{run['id']}", err=as_json)
        if watch:
            raise typer.Exit(_watch(studio, int(run["id"]), as_json))


@runs_app.command("watch")
def watch_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")], as_json: AsJson = False) -> None:
    """Follow a run until it ends; the exit code says whether it succeeded. Ctrl-C leaves the run alone."""
    with _studio() as studio:
        raise typer.Exit(_watch(studio, run_id, as_json))


@runs_app.command("cancel")
def cancel_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")]) -> None:
    """Stop a run after its step; the last checkpoint stays."""
    with _studio() as studio:
        studio.cancel_run(run_id)
        typer.echo(f"Run #{run_id} is {studio.run(run_id)['state']}.")


def _read_spec(path: Path, changes: Sequence[str]) -> dict[str, Any]:
    import yaml

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
        found = yaml.safe_load(text)  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} is neither YAML nor JSON: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(
            f"{path} holds no spec: a mapping with `method`, `base_model`, `dataset` … was expected"
        )
    spec: dict[str, Any] = found.get("spec", found)
    for change in changes:
        place, equals, value = change.partition("=")
        if not (place and equals):
            raise typer.BadParameter(f"“{change}” is not of the form PLACE=VALUE", param_hint="--set")
        *parents, last = place.split(".")
        target = spec
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise typer.BadParameter(f"“{parent}” holds a value, not more fields", param_hint="--set")
        target[last] = yaml.safe_load(value)
    return spec


def _state(run: Mapping[str, Any]) -> str:
    silent = run.get("silent_seconds")
    return f"silent for {_duration(silent)}" if silent else str(run.get("state"))


def _steps(run: Mapping[str, Any]) -> str:
    step, total = run.get("step"), run.get("total", run.get("total_steps"))
    return "" if step is None else f"{step:,}" + (f" of {total:,}" if total else "")


def _reason(run: Mapping[str, Any]) -> str:
    reason = run.get("reason") or run.get("exit_reason") or ""
    return f"{reason}\n→ {run['remedy']}" if reason and run.get("remedy") else str(reason)


def _watch(studio: Studio, run_id: int, as_json: bool) -> int:
    """Follow the run; one live line in a terminal, one line per change elsewhere. 0 succeeded, 1 not, 130 interrupted."""
    run: dict[str, Any] = {}
    values: dict[str, Any] = {}
    live = sys.stdout.isatty() and not as_json
    shown: tuple[Any, Any] | None = None
    try:
        for event in studio.follow(run_id):
            if as_json:
                typer.echo(json.dumps({"event": event.name, "id": event.id, "data": event.data}, ensure_ascii=False))
            if event.name == "run":
                run |= event.data
            elif event.name == "metrics":
                values |= event.data.get("values", {})
                run["step"] = max(run.get("step") or 0, event.data.get("step") or 0)
            else:
                continue
            line = _live_line(run_id, run, values)
            if live:
                typer.echo(f"\r\033[2K{line[: shutil.get_terminal_size().columns - 1]}", nl=False)
            elif not as_json and (said := (run.get("state"), run.get("step"))) != shown:
                typer.echo(line)
                shown = said
    except KeyboardInterrupt:
        typer.echo(f"\nRun #{run_id} goes on; `studio runs watch {run_id}` looks again.", err=True)
        return 130
    if live:
        typer.echo()
    if run.get("state") == "failed":
        typer.secho(_reason(studio.run(run_id)) or "It failed; its log says why.", fg="red", err=True)
        typer.echo(f"→ {studio.url}/runs/{run_id}", err=True)
    return 0 if run.get("state") == "succeeded" else 1


WATCHED = (
    "loss",
    "eval_loss",
    "rewards/margins",
    "eval_rewards/accuracies",
    "eval_accuracy",
    "eval_mean_token_accuracy",
)


def _live_line(run_id: int, run: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    parts = [f"#{run_id}", _state(run), _steps(run)]
    parts += [f"{key} {_short(values[key])}" for key in WATCHED if key in values]
    if run.get("state") not in FINISHED:
        rate, left = run.get("rate"), run.get("left_seconds")
        parts += [f"{rate:.2f} steps/s"] if rate else []
        parts += [f"{_duration(left)} left"] if left else []
    return "  ".join(part for part in parts if part)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{rest} s"
        if not minutes
        else f"{minutes} min {rest} s"
        if minutes < 60
        else f"{minutes // 60} h {minutes % 60} min"
    )


# --- beside the database


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
    typer.echo(_local_address().rstrip("/") + path)


@admin_app.command("list")
def list_people() -> None:
    """List everybody with an account."""
    from backend.accounts import service
    from backend.accounts.actors import Actor

    with _database() as session:
        people = service.list_people(session, Actor(0, "console", is_admin=True))
        _table(
            ((one.id, one.name, one.email, "admin" if one.is_admin else "", "" if one.is_active else "kept out") for one in people),
            "id", "name", "email", "", "",
        )  # fmt: skip


if __name__ == "__main__":
    main()
