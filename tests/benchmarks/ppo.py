"""How fast PPO is against a plain loop of four models: ``python -m tests.benchmarks.ppo [rollouts [reward model]]``.

Ends within about three minutes on a quiet machine. Without a reward model, a short one is trained first.

The plain loop is the one of papers and tutorials: Transformers' ``generate``, then policy, reference, value and reward
model each read the whole texts, logits over the vocabulary at every position, old log-probabilities in a pass of their
own; the same model, rewards, prompts, batches and hyperparameters. Both take turns of one rollout in this process, so
that a busy machine hits them alike; evaluation and checkpoints are left out. Printed: median CPU seconds and wall
seconds of a rollout with its two optimizer steps, their ratios, the machine's load, and what both are paid. Ours also
reckons what it reports (entropy, divergence by k3, clipped shares, explained variance); the loop reports nothing.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback

from backend.datasets.rows import RowType
from backend.demo import corpus, specs
from backend.runs.specs import Launch, ModelFolder, PPOSpec, ValueHead, ValueModel
from tests.worker.running import BASE, launch, run, write_rows
from worker import networks, online, rows
from worker.recipes import training
from worker.recipes.ppo import PPO
from worker.report import Report, Stop
from worker.rewards import Composition
from worker.roles import cast
from worker.sampling import pad_left


class Turns:
    """Two trainings in two threads, one rollout each in turn; what every rollout took."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore) -> None:
        self.mine, self.other = mine, other
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.since = (0.0, 0.0)

    def begin(self) -> None:
        """A rollout may begin; the one before it has ended."""
        if self.since != (0.0, 0.0):
            self.cpu.append(time.thread_time() - self.since[0])
            self.wall.append(time.perf_counter() - self.since[1])
            self.other.release()
        self.mine.acquire()
        self.since = (time.thread_time(), time.perf_counter())

    def end(self) -> None:
        """No other will follow."""
        self.cpu.append(time.thread_time() - self.since[0])
        self.wall.append(time.perf_counter() - self.since[1])
        self.other.release()
        self.other.release()


class Announce(TrainerCallback):
    """Begins a turn before every second step: each rollout is learned from twice."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        if state.global_step % 2 == 0:
            self.turns.begin()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.turns.end()


# --- the plain loop ----------------------------------------------------------------------------------------------


def logps_of(model: nn.Module, ids: Tensor, mask: Tensor, start: int) -> Tensor:
    """Log-probabilities of the tokens from *start* on, by way of all logits: (B, T)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, :-1].log_softmax(-1)
    return logits.gather(-1, ids[:, 1:, None]).squeeze(-1)[:, start - 1 :]


def values_of(model: nn.Module, head: nn.Linear, ids: Tensor, mask: Tensor, start: int) -> Tensor:
    """V of the text before each token from *start* on: (B, T)."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
    return head(hidden).squeeze(-1)[:, start - 1 : -1]  # type: ignore[no-any-return]


def plain(spec: PPOSpec, reward_folder: Path, prompts: list[list[int]], turns: Turns, rollouts: int) -> list[float]:
    """Four models and nothing shared; the mean score of every rollout."""
    torch.manual_seed(spec.seed)
    policy, reference = networks.load(BASE), networks.load(BASE).eval()
    value, head = networks.load(BASE).base_model, nn.Linear(policy.config.hidden_size, 1)
    judge = networks.load(reward_folder, reward=True).eval()
    tokenizer = networks.load_tokenizer(BASE)
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    learning = [*policy.parameters(), *value.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=spec.optimization.learning_rate, weight_decay=0)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    beta, size = spec.kl.beta.beta, spec.optimization.batch_size  # type: ignore[union-attr]
    scored = []
    for number in range(rollouts):
        turns.begin()
        asked, asked_mask = pad_left([prompts[(number * size + i) % len(prompts)] for i in range(size)], pad)
        start = asked.size(1)
        with torch.no_grad():
            ids = policy.generate(
                input_ids=asked,
                attention_mask=asked_mask,
                do_sample=True,
                top_k=0,
                max_new_tokens=spec.sampling.max_new_tokens,
                pad_token_id=pad,
                eos_token_id=end,
            )
            written = ids[:, start:]
            over = (written == end).cumsum(1) - (written == end).long() > 0
            counts = (~over).float()
            mask = torch.cat([asked_mask, counts.long()], 1)
            old = logps_of(policy, ids, mask, start)
            ref = logps_of(reference, ids, mask, start)
            old_values = values_of(value, head, ids, mask, start)
            texts = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
            longest = max(map(len, texts))
            scores = judge(
                input_ids=torch.tensor([row + [pad] * (longest - len(row)) for row in texts]),
                attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in texts]),
            ).logits.squeeze(-1)
            scores = scores - spec.scores.missing_end_penalty * (~(written == end).any(1)).float()
            scored.append(scores.mean().item())
            rewards = -beta * (old - ref) * counts
            rewards[torch.arange(size), counts.sum(1).long() - 1] += scores
            advantages, ahead, value_ahead = torch.zeros_like(rewards), torch.zeros(size), torch.zeros(size)
            for t in reversed(range(rewards.size(1))):
                surprise = rewards[:, t] + spec.gamma * value_ahead - old_values[:, t]
                ahead = (surprise + spec.gamma * spec.gae_lambda * ahead) * counts[:, t]
                value_ahead = old_values[:, t] * counts[:, t]
                advantages[:, t] = ahead
            returns = advantages + old_values
            mean = (advantages * counts).sum() / counts.sum()
            deviation = (((advantages - mean).square() * counts).sum() / counts.sum()).sqrt()
            advantages = (advantages - mean) / (deviation + 1e-8)
        for _ in range(spec.epochs):
            ratio = (logps_of(policy, ids, mask, start) - old).exp()
            first, second = ratio * advantages, ratio.clamp(1 - spec.clip, 1 + spec.clip) * advantages
            values = values_of(value, head, ids, mask, start)
            kept = torch.clamp(values, old_values - spec.value_clip, old_values + spec.value_clip)
            worse = torch.max((values - returns).square(), (kept - returns).square()) / 2
            loss = ((-torch.min(first, second) + spec.value_weight * worse) * counts).sum() / counts.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning, spec.optimization.max_gradient_norm)
            optimizer.step()
    turns.end()
    return scored


# --- ours --------------------------------------------------------------------------------------------------------


def studio(launched: Launch, turns: Turns) -> None:
    """The recipe's trainer, without evaluation and checkpoints."""
    spec = launched.spec
    torch.manual_seed(spec.seed)
    tokenizer = networks.load_tokenizer(BASE)
    prepared = rows.prompts(launched, tokenizer, {})
    roles = cast(launched, spec, BASE)
    with Composition(spec.rewards, launched, max_new_tokens=spec.sampling.max_new_tokens) as rewards:
        config = online.arguments(launched, prepared, group_size=1)
        config.eval_strategy = config.save_strategy = "no"
        trainer = PPO(launched, prepared, rewards, roles.policy, tokenizer, config=config, roles=roles)
        trainer.launch, trainer.stop = launched, Stop()
        with Report(launched.folder / "events.jsonl") as report:
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(training._Follow(report, trainer.stop))
            trainer.add_callback(Announce(turns))
            trainer.train()


def paid(folder: Path) -> list[float]:
    """The mean score of every rollout of a run."""
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [e["values"]["objective/scores"] for e in events if "objective/scores" in e.get("values", {})]


def main(rollouts: int = 12, reward_model: str = "") -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = write_rows(folder / "pairs.parquet", corpus.preference_pairs(3000, 10))
        judge = Path(reward_model or folder / "reward" / "model")
        if not reward_model:
            usual_judge = specs.reward(1, 1)
            few = usual_judge.optimization.model_copy(update={"steps": 40})
            short = usual_judge.model_copy(update={"optimization": few})
            run(launch(folder / "reward", short, pairs, RowType.PREFERENCE))
        for value in (ValueHead(), ValueModel()):
            usual = specs.ppo(1, 1, reward_model=2)
            steps = {"steps": usual.epochs * rollouts, "warmup_steps": 0}
            spec = usual.model_copy(
                update={"value": value, "optimization": usual.optimization.model_copy(update=steps)}
            )
            one = launch(folder / value.kind, spec, pairs, RowType.PREFERENCE, models={2: ModelFolder(folder=judge)})
            one.folder.mkdir()
            learned = rows.prompts(one, networks.load_tokenizer(BASE), {}).train
            a, b = threading.Semaphore(1), threading.Semaphore(0)
            ours, theirs = Turns(a, b), Turns(b, a)
            told: list[float] = []
            threads = [
                threading.Thread(target=lambda: studio(one, ours)),  # noqa: B023
                threading.Thread(
                    target=lambda: told.extend(plain(spec, judge, learned["prompt_ids"], theirs, rollouts))  # noqa: B023
                ),
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            print(f"{rollouts} rollouts of {spec.optimization.batch_size}, value {value.kind}")
            for name, turns, scores in (("four models, plain", theirs, told), ("studio", ours, paid(one.folder))):
                cpu, wall = (statistics.median(seconds[2:]) for seconds in (turns.cpu, turns.wall))
                print(f"  {name:20s} {cpu:.3f} s CPU, {wall:.3f} s a rollout; paid {scores[0]:.2f} → {scores[-1]:.2f}")
            ratio = statistics.median(theirs.cpu[2:]) / statistics.median(ours.cpu[2:])
            clock = statistics.median(theirs.wall[2:]) / statistics.median(ours.wall[2:])
            load = os.getloadavg()[0]
            print(f"  {ratio:.2f} × as fast by CPU, {clock:.2f} × by the clock (medians); load {load:.1f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
