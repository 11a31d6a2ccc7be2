"""Kahneman–Tversky optimization: a policy from thumbs, each completion judged by itself.

With r = log π(y|x)/π_ref(y|x), summed over completion tokens, and z_ref as below:

    λ_D·(1 − σ(β·(r − z_ref)))   for a thumb up
    λ_U·(1 − σ(β·(z_ref − r)))   for a thumb down                       Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8

z_ref = max(0, mean of log π(y'|x)/π_ref(y'|x)) over a batch, y' the completion of the nearest row before with another
prompt; nothing is learned through it. Because z_ref belongs to neighbors, rows are shuffled once, by the seed, and come
in that order in every epoch. The reference π_ref is the model the run starts from: loaded again for full weights, the
adapter switched off for an adapter.

Columns in: ``prompt``, ``completion``, ``label``; or pairs, each taken as one thumb up and one down (a tie is left out,
a pair with p < 1/2 changes sides). Events out: ``rewards/{chosen,rejected,margins}`` (β·r of thumbs up and down),
``logps/*``, ``kl`` (z_ref), ``loss``, their ``eval_`` twins, and held-out completions (greedy).

Differs from TRL: y' is never an answer to the same prompt, and it is cut so that prompt and y' fit the longest length.
Left out: weights per row.
"""

from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from backend.runs.events import Note
from backend.runs.specs import FullWeights, KTOSpec, Launch
from worker import networks, rows
from worker.recipes import training
from worker.recipes.show import written
from worker.report import SpecCannotWork

if TYPE_CHECKING:
    from worker.report import Report, Stop

_BALANCED = (1.0, 4 / 3)
"""Where λ_D·n_D / λ_U·n_U should be, by Ethayarajh et al. 2024 and TRL."""


class KTO(training.Frame, KTOTrainer):
    """TRL's trainer in our frame."""


def run(launch: Launch, spec: KTOSpec, report: "Report", stop: "Stop") -> None:
    """Carry out *spec*."""
    torch.manual_seed(spec.seed)
    start = networks.starting_point(launch)
    tokenizer = networks.load_tokenizer(start)
    model = networks.load_to_train(start, spec.weights)
    networks.check_fit(model, tokenizer, max_length=spec.max_length)
    networks.silence_dropout(model)
    prepared = rows.prepare(launch, tokenizer, rows.thumbs)
    prepared.notes.extend(balance(prepared.train["label"][:], spec))
    trainer = KTO(
        model,
        ref_model=networks.load(start) if isinstance(spec.weights, FullWeights) else None,
        args=KTOConfig(
            **training.arguments(launch, prepared),
            beta=spec.beta,
            desirable_weight=spec.desirable_weight,
            undesirable_weight=spec.undesirable_weight,
            train_sampling_strategy="sequential",
            disable_dropout=False,
        ),
        train_dataset=with_neighbors(shuffled(prepared.train, spec.seed), spec.max_length),
        eval_dataset=with_neighbors(shuffled(prepared.held_out, 0), spec.max_length),  # the same in every run
        processing_class=tokenizer,
        peft_config=networks.lora_config(spec.weights),
    )
    training.carry_out(launch, report, stop, trainer, prepared, written(launch, trainer, prepared, stop))


def balance(labels: list[bool], spec: KTOSpec) -> list[Note]:
    """A warning with the weights to use if thumbs up and down do not weigh about the same.

    Raises :class:`SpecCannotWork` if all labels are equal: then nothing says what is better.
    """
    up = sum(labels)
    down = len(labels) - up
    if not up or not down:
        raise SpecCannotWork(
            f"all {len(labels)} thumbs to learn from point {'up' if up else 'down'}, so nothing says what is better",
            remedy="Use rows with thumbs of both kinds; of completions that are all good, imitate them with SFT.",
            field="dataset",
        )
    low, high = _BALANCED
    ratio = spec.desirable_weight * up / (spec.undesirable_weight * down)
    if low - 0.005 <= ratio <= high + 0.005:
        return []
    field, scale = ("desirable_weight", down / up) if ratio < low else ("undesirable_weight", up / down)
    other = spec.undesirable_weight if ratio < low else spec.desirable_weight
    bounds = (low, high) if ratio < low else (1 / high, 1 / low)
    least, most = (other * scale * bound for bound in bounds)
    return [
        Note(
            level="warning",
            text=f"{up} thumbs up and {down} down weigh {ratio:.2f} to 1; between 1 and 1.33 neither side drowns the "
            f"other. A {field} from {least:.2f} to {most:.2f} does that.",
        )
    ]


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """The rows in an order that only *seed* decides."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return dataset.select(order.tolist())


def with_neighbors(dataset: Dataset, max_length: int) -> Dataset:
    """Add ``KL_completion_ids``: the completion of the nearest row before with another prompt, the last before the first.

    Where all rows have one prompt, the row before.
    """
    prompts = [tuple(ids) for ids in dataset["prompt_ids"]]
    count = len(prompts)
    nearest = [(row - 1) % count for row in range(count)]
    other: int | None = None
    for row in [*range(count), *range(count)]:  # twice around: the first rows look back over the end
        if prompts[row - 1] != prompts[row]:
            other = (row - 1) % count
        if other is not None:
            nearest[row] = other
    completions = dataset["completion_ids"][:]
    cut = [completions[near][: max_length - len(prompts[row])] for row, near in enumerate(nearest)]
    return dataset.add_column("KL_completion_ids", cut)
