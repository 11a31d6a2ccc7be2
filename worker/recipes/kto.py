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
``logps/*``, ``kl`` (z_ref), ``loss``, their ``eval_`` twins, and held-out completions (greedy); of pairs at every
evaluation ``eval_rewards/accuracies`` and what length alone says (``eval_length_accuracy``, ``eval_longer_accuracy``).

Differs from TRL: y' is never an answer to the same prompt, and it is cut so that prompt and y' fit the longest length.
Held-out figures are means over rows, and z_ref is the mean over all of them: TRL's are means over batches, which weigh a
thumb by how many of its kind share its batch. A step's loss is TRL's: the mean over its passes of the means over their
rows, so that where an epoch ends in a smaller pass, its rows weigh more.
Left out: weights per row.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import KTOConfig, KTOTrainer

from backend.datasets.rows import RowType
from backend.runs.events import Note
from backend.runs.specs import FullWeights, KTOSpec, Launch
from worker import networks, objectives, rows
from worker.objectives import IGNORED
from worker.recipes import training
from worker.recipes.reckoning import Compared, tokens
from worker.recipes.show import written
from worker.report import SpecCannotWork

if TYPE_CHECKING:
    from worker.report import Report, Stop

PAIRED = "paired"
"""Column of rows that were pairs: their place before they were shuffled, 2n for a pair's thumb up and 2n + 1 for its thumb down."""

_BALANCED = (1.0, 4 / 3)
"""Where λ_D·n_D / λ_U·n_U should be, by Ethayarajh et al. 2024 and TRL."""


class KTO(Compared, KTOTrainer):
    """TRL's trainer in our frame; held-out rows are looked at by ourselves."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's; of a held-out batch what is found about each row is kept."""
        if self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        counts = inputs["completion_mask"]  # (B, T)
        said = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            labels=inputs["input_ids"].masked_fill(counts == 0, IGNORED),
            use_cache=False,
            fused_lm_head=True,
        )
        referred, shifted = self.compute_ref_log_probs(self.ref_model or self.model, inputs)  # (B,) each
        logps = said.log_probs.sum(1)  # (B,)
        found = {
            "up": inputs["label"],
            "ratio": logps - referred,
            "shifted": self._compute_kl_logps(model, inputs) - shifted,
            "logps": logps,
            "entropy": (said.entropy * counts[:, 1:]).sum(1),
            "logits": (said.mean_logits * counts[:, 1:]).sum(1),
            "tokens": counts[:, 1:].sum(1),
        }
        self.keep(**found)
        return found["ratio"].mean()  # the loss is reckoned from all rows, whose z_ref is not known yet

    def figures(self, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """Of the held-out rows, and of the pairs that they were."""
        spec, held_out = self.launch.spec, self.eval_dataset
        assert isinstance(spec, KTOSpec)
        assert isinstance(held_out, Dataset)
        told = of_rows(spec, kept)
        if PAIRED in held_out.column_names:
            chosen, rejected = as_pairs(held_out)
            wins = kept["ratio"][chosen] > kept["ratio"][rejected]
            told |= {"rewards/accuracies": wins.double().mean().item()} | super().figures(kept)
        return told

    def longer_by(self, pairs: Dataset) -> Tensor:
        """See :class:`worker.recipes.reckoning.Compared`."""
        chosen, rejected = as_pairs(pairs)
        lengths = tokens(pairs, "completion_ids")
        return lengths[chosen] - lengths[rejected]

    def probabilities(self, pairs: Dataset) -> Tensor:
        """Pairs on which annotators differ were decided before they became thumbs."""
        return torch.ones(len(pairs) // 2, dtype=torch.float64)


def of_rows(spec: KTOSpec, kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over rows: what *kept* says of each (N,), ``shifted`` the log-ratio of another prompt's completion."""
    up, ratio = kept["up"].bool(), kept["ratio"]
    z_ref = objectives.kto_reference_point(kept["shifted"])
    weights = {"desirable_weight": spec.desirable_weight, "undesirable_weight": spec.undesirable_weight}
    told = {
        "loss": objectives.kto_loss(ratio, up, z_ref, beta=spec.beta, **weights).mean(),
        "kl": z_ref,
        "entropy": kept["entropy"].sum() / kept["tokens"].sum(),
    }
    for side, mine in (("chosen", up), ("rejected", ~up)):
        if mine.any():
            told[f"rewards/{side}"] = spec.beta * ratio[mine].mean()
            told[f"logps/{side}"] = kept["logps"][mine].mean()
            told[f"logits/{side}"] = kept["logits"][mine].sum() / kept["tokens"][mine].sum()
    if up.any() and not up.all():
        told["rewards/margins"] = told["rewards/chosen"] - told["rewards/rejected"]
    return {name: value.item() for name, value in told.items()}


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
    learned, held_out = prepared.train, prepared.held_out
    if launch.row_type is RowType.PREFERENCE:
        learned, held_out = (side.add_column(PAIRED, range(len(side))) for side in (learned, held_out))
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
        train_dataset=with_neighbors(shuffled(learned, spec.seed), spec.max_length),
        eval_dataset=with_neighbors(shuffled(held_out, 0), spec.max_length),  # the same in every run
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


def as_pairs(thumbs: Dataset) -> tuple[Tensor, Tensor]:
    """Where the thumbs up and down of each pair are (N,), from their places before they were shuffled."""
    places = torch.tensor(thumbs[PAIRED][:]).argsort()
    return places[::2], places[1::2]


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
