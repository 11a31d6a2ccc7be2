"""Whether a spec can work, asked before it queues: every refusal names the field and the remedy.

What a spec knows by itself (bounds, whole groups, names of components) it refuses itself; here is what takes the project's
models and rows, and the workers' machines.
"""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.accounts.actors import Actor
from backend.datasets import service as datasets
from backend.datasets.rows import RowType
from backend.datasets.tables import DatasetVersion
from backend.errors import Invalid, NotFound
from backend.registry import service as registry
from backend.registry.tables import Model
from backend.runs import lengths
from backend.runs.specs import (
    NEEDS,
    REWARD_MODELS,
    TITLES,
    AnySpec,
    AttributeRewardSpec,
    DataParallel,
    DPOSpec,
    OneDevice,
    OnlineSpec,
    QLoRA,
    RewardSpec,
    rewards,
)
from backend.runs.tables import NOW, Run, Worker

FORGOTTEN_SECONDS = 86400.0
"""A worker that was not heard for a day and holds nothing is gone, not silent."""


class InvalidSpec(Invalid):
    """This run cannot be submitted."""


def check_spec(session: Session, actor: Actor, project_id: int, spec: AnySpec) -> tuple[Model, DatasetVersion]:
    """The model and the rows that *spec* names, if everything fits together. Raises with ``field`` and remedy."""
    model = _model(session, actor, project_id, spec.base_model, "base_model")
    version = _version(session, actor, project_id, spec)
    _base(session, spec, model)
    _rows(spec, version)
    _columns(spec, version)
    _scoring(session, actor, project_id, spec)
    _lengths(spec)
    if wrong := lengths.refusal(session, spec, model, version):
        said, field, remedy = wrong
        raise InvalidSpec(said, field=field, remedy=remedy)
    _machines(session, spec)
    return model, version


def methods_of(session: Session, models: Sequence[Model]) -> dict[int, str | None]:
    """Model → the method of the run that made it; ``None`` for a registered one."""
    runs = {model.run_id for model in models if model.run_id is not None}
    methods = {row.id: row.method for row in session.execute(select(Run.id, Run.method).where(Run.id.in_(runs)))}
    return {model.id: methods.get(model.run_id) if model.run_id is not None else None for model in models}


def reward_kinds(session: Session, models: Sequence[Model]) -> dict[int, str]:
    """Reward model → the method that makes its kind: ``reward``, ``attribute_reward`` or ``process_reward``.

    The run that made it says so; of a registered one its architecture does (a score for each token, or for the text).
    """
    made_by = methods_of(session, models)
    by_files = {
        model.id: "process_reward" if "TokenClassification" in model.architecture else "reward" for model in models
    }
    return {
        model.id: method if (method := made_by[model.id]) in REWARD_MODELS else by_files[model.id] for model in models
    }


# --- what it names ---------------------------------------------------------------------------------------------------


def _model(session: Session, actor: Actor, project_id: int, model_id: int, field: str) -> Model:
    try:
        model = registry.get_model(session, actor, model_id)
        if model.project_id != project_id:
            raise NotFound("")
    except NotFound:
        raise InvalidSpec(
            f"The project has no model {model_id}.", field=field, remedy="Choose a model of the project."
        ) from None
    return model


def _version(session: Session, actor: Actor, project_id: int, spec: AnySpec) -> DatasetVersion:
    try:
        version = datasets.get_version(session, actor, spec.dataset)
        if version.dataset.project_id != project_id:
            raise NotFound("")
    except NotFound:
        raise InvalidSpec(
            f"The project has no dataset version {spec.dataset}.",
            field="dataset",
            remedy="Choose a dataset version of the project.",
        ) from None
    return version


def _base(session: Session, spec: AnySpec, model: Model) -> None:
    if model.kind == "language":
        return
    kind = reward_kinds(session, [model])[model.id]
    if spec.method not in REWARD_MODELS:
        raise InvalidSpec(
            f"“{model.name}” is a reward model: it gives numbers, no words.",
            field="base_model",
            remedy="Choose a language model.",
        )
    if kind != spec.method:
        raise InvalidSpec(
            f"“{model.name}” was made by {TITLES[kind]}, and {TITLES[spec.method]} has another head.",
            field="base_model",
            remedy=f"Choose a language model, or one that {TITLES[spec.method]} made.",
        )


def _said(version: DatasetVersion) -> str:
    return f"“{version.dataset.name}” version {version.number}"


def _rows(spec: AnySpec, version: DatasetVersion) -> None:
    if RowType(version.row_type) in NEEDS[spec.method]:
        return
    needed = " or ".join(sorted(kind.value.replace("_", " ") for kind in NEEDS[spec.method]))
    raise InvalidSpec(
        f"{TITLES[spec.method]} learns from {needed} rows; {_said(version)} holds {version.row_type.replace('_', ' ')} rows.",
        field="dataset",
        remedy=f"Choose a version with {needed} rows, or another method.",
    )


def _columns(spec: AnySpec, version: DatasetVersion) -> None:
    needed = spec.columns()
    if isinstance(spec, RewardSpec) and spec.use_margin:
        needed["margin"] = "use_margin"
    if isinstance(spec, RewardSpec | DPOSpec) and spec.use_probability:
        needed["probability"] = "use_probability"
    for column, field in needed.items():
        if column not in version.columns:
            there = ", ".join(datasets.columns_of(version))
            raise InvalidSpec(
                f"{_said(version)} has no column “{column}”; it has {there}.",
                field=field,
                remedy="Choose another column, or import the rows with it.",
            )
    if isinstance(spec, AttributeRewardSpec):
        known = version.statistics.get("scores", {})
        missing = [name for name in spec.attributes if name not in known]
        if missing:
            raise InvalidSpec(
                f"The rows of {_said(version)} have no score “{missing[0]}”; they have {', '.join(known) or 'none'}.",
                field=f"attributes.{missing[0]}",
                remedy="Choose attributes that the rows have.",
            )


def _scoring(session: Session, actor: Actor, project_id: int, spec: AnySpec) -> None:
    if not isinstance(spec, OnlineSpec):
        return
    for index, component in enumerate(spec.rewards.components):
        field = f"rewards.components[{index}]"
        match component:
            case rewards.RewardModelScore(models=ids):
                for place, model_id in enumerate(ids):
                    _scores(
                        session, actor, project_id, model_id, f"{field}.models[{place}]", ("reward", "attribute_reward")
                    )
            case rewards.ProcessScore(model=model_id):
                _scores(session, actor, project_id, model_id, f"{field}.model", ("process_reward",))


def _scores(session: Session, actor: Actor, project_id: int, model_id: int, field: str, kinds: tuple[str, ...]) -> None:
    model = _model(session, actor, project_id, model_id, field)
    wanted = "a process reward model" if kinds == ("process_reward",) else "a reward model"
    remedy = f"Choose {wanted} of the project, or train one first."
    if model.kind != "reward":
        raise InvalidSpec(f"“{model.name}” writes text and gives no score.", field=field, remedy=remedy)
    kind = reward_kinds(session, [model])[model.id]
    if kind not in kinds:
        scores = "steps" if kind == "process_reward" else "whole texts"
        raise InvalidSpec(f"“{model.name}” scores {scores}; this needs {wanted}.", field=field, remedy=remedy)


def _lengths(spec: AnySpec) -> None:
    how = spec.optimization
    if how.warmup_steps > how.steps:
        raise InvalidSpec(
            "The warm-up is longer than the run.", field="optimization.warmup_steps", remedy="Shorten the warm-up."
        )
    if isinstance(spec, OnlineSpec) and spec.sampling.max_new_tokens >= spec.max_length:
        raise InvalidSpec(
            f"Completions of {spec.sampling.max_new_tokens:,} tokens leave no room for a prompt in {spec.max_length:,}.",
            field="sampling.max_new_tokens",
            remedy="Allow shorter completions, or a longer row (max_length).",
        )


# --- who can carry it out --------------------------------------------------------------------------------------------


def _machines(session: Session, spec: AnySpec) -> None:
    quiet = func.extract("epoch", NOW - Worker.heard_at)
    workers = session.scalars(select(Worker).where(quiet < FORGOTTEN_SECONDS)).all()
    if not workers:  # the run waits in the queue until one comes; nothing is known about it yet
        return
    for index, component in enumerate(spec.rewards.components if isinstance(spec, OnlineSpec) else []):
        if isinstance(component, rewards.CodeTests):
            _sandbox(workers, f"rewards.components[{index}]")
    most = max(len(worker.devices) for worker in workers)
    if isinstance(spec.weights, QLoRA) and not most:
        raise InvalidSpec(
            "QLoRA keeps weights in 4 bits, which needs a GPU; no worker has one.",
            field="weights",
            remedy="Choose LoRA, or start a worker on a machine with a GPU.",
        )
    if isinstance(spec.devices, OneDevice) or (isinstance(spec.devices, DataParallel) and not most):
        return  # on the CPU processes share the cores
    if spec.devices.processes > most:
        has = f"the largest worker has {most}" if most else "no worker has one"
        raise InvalidSpec(
            f"The run asks for {spec.devices.processes} GPUs; {has}.",
            field="devices.processes",
            remedy="Ask for fewer, or start a worker on a larger machine.",
        )


def _sandbox(workers: Sequence[Worker], field: str) -> None:
    """Programs run only where a sandbox was tried and held; a worker that has not said so yet may be the one."""
    without = [worker.sandbox for worker in workers if worker.sandbox is not None and worker.sandbox["tier"] is None]
    if len(without) == len(workers):
        raise InvalidSpec(
            f"No worker can run programs: {without[0].get('reason', 'the self-test of its sandbox failed')}.",
            field=field,
            remedy=str(without[0].get("remedy", "")),
        )
