"""Held-out texts to be read beside the curves: a reward accuracy alone has hidden destroyed models before."""

from transformers import PreTrainedTokenizerBase, Trainer

from backend.runs.events import Completion
from backend.runs.specs import Evaluation, Launch
from worker.recipes.training import Show
from worker.report import Stop
from worker.rows import Prepared
from worker.sampling import complete


def written(launch: Launch, trainer: Trainer, prepared: Prepared, stop: Stop) -> Show:
    """Greedy completions of the held-out prompts, the same prompts every time."""
    evaluation = launch.spec.evaluation
    assert isinstance(evaluation, Evaluation)

    def show() -> list[Completion]:
        if not prepared.prompts:
            return []
        tokenizer = trainer.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        sampled = complete(
            trainer.accelerator.unwrap_model(trainer.model),
            tokenizer,
            [prompt.ids for prompt in prepared.prompts],
            max_new_tokens=evaluation.max_new_tokens,
            batch_size=trainer.args.per_device_eval_batch_size,
            stopped=lambda: stop.requested,
        )
        return [
            Completion(prompt=prompt.text, completion=sample.text, tokens=sample.tokens, ended=sample.ended)
            for prompt, sample in zip(prepared.prompts, sampled, strict=True)
        ]

    return show
