"""Commands about runs: submit a spec, watch, cancel; and the workers that carry runs out."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.cli.asking import Project, project_id, signed_in
from backend.cli.printing import AsJson, duration, print_json, table
from backend.client import FINISHED, Studio

runs_app = typer.Typer(help="Runs: submit a spec, watch, cancel.", no_args_is_help=True)


@runs_app.command("list")
def list_runs(
    project: Project = None,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List the runs of a project, newest first."""
    with signed_in() as studio:
        source = studio.runs(project_id(studio, project))
        found = [one for _, one in zip(range(limit), source, strict=False)]
    if as_json:
        return print_json(found)
    table(
        ((one["id"], one.get("method"), one.get("name"), _state(one), _steps(one), one.get("worker")) for one in found),
        "id", "method", "name", "state", "step", "worker",
    )  # fmt: skip


@runs_app.command("show")
def show_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")], as_json: AsJson = False) -> None:
    """Show one run: state, progress, spec."""
    with signed_in() as studio:
        run = studio.run(run_id)
    if as_json:
        return print_json(run)
    typer.echo(f"#{run['id']} {run.get('name') or ''}  {_state(run)}  {_steps(run)}".rstrip())
    if _reason(run):
        typer.echo(_reason(run))
    typer.echo(f"{studio.url}/runs/{run['id']}")
    print_json(run.get("spec"))


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
    with signed_in() as studio:
        run = studio.submit_run(project_id(studio, project), wanted, name=name, idempotency_key=key)
        if as_json and not watch:
            return print_json(run)
        typer.echo(f"Run #{run['id']} is {run['state']}: {studio.url}/runs/{run['id']}", err=as_json)
        if watch:
            raise typer.Exit(_watch(studio, int(run["id"]), as_json))


@runs_app.command("watch")
def watch_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")], as_json: AsJson = False) -> None:
    """Follow a run until it ends; the exit code says whether it succeeded. Ctrl-C leaves the run alone."""
    with signed_in() as studio:
        raise typer.Exit(_watch(studio, run_id, as_json))


@runs_app.command("cancel")
def cancel_run(run_id: Annotated[int, typer.Argument(help="Number of the run.")]) -> None:
    """Stop a run after its step; the last checkpoint stays."""
    with signed_in() as studio:
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
    return f"silent for {duration(silent)}" if silent else str(run.get("state"))


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
        parts += [f"{duration(left)} left"] if left else []
    return "  ".join(part for part in parts if part)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


# --- workers


def workers(as_json: AsJson = False) -> None:
    """List the workers and what they do."""
    with signed_in() as studio:
        found = studio.workers()
    if as_json:
        return print_json(found)
    table(
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
    return "" if seconds is None else f"{duration(seconds)} ago"
