"""What PPO's four roles weigh: ``python -m tests.benchmarks.ppo_memory``.

A random Llama of 40 million parameters plays policy, reference, value and reward: as four models, of which policy and
value are trained whole (the classical arrangement); with a value head instead of the value model; and on one backbone,
with adapters of rank 16. Each runs in a process of its own: three steps of what PPO does to the roles (reference and
reward without gradient, policy and value with, AdamW). Printed: the peak of the process's memory minus what the imports
take, and the share of four models.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peft import get_peft_model
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backend.datasets.rows import RowType
from backend.runs.specs import FullWeights, Launch, LoRA, ModelFolder, PPOSpec, ValueHead, ValueModel
from backend.runs.specs.rewards import RewardModelScore, Rewards
from worker import networks, roles, scoring
from worker.encoding import Pair
from worker.forward import Texts, read

VOCABULARY = 32_000
ROWS, PROMPT, COMPLETION = 4, 32, 32
ARRANGEMENTS = {
    "four models": (FullWeights(), ValueModel()),
    "three models and a value head": (FullWeights(), ValueHead()),
    "one backbone, value adapter": (LoRA(rank=16, alpha=32), ValueModel()),
    "one backbone, value head": (LoRA(rank=16, alpha=32), ValueHead()),
}


def memory(what: str) -> float:
    """MiB of this process: ``VmRSS`` now, ``VmHWM`` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def make(folder: Path) -> None:
    """The base, and reward models of both kinds on it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    base = LlamaForCausalLM(config)
    print(f"{sum(p.numel() for p in base.parameters()) / 1e6:.1f} M parameters")
    base.save_pretrained(folder / "base")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    tokenizer.save_pretrained(folder / "base")
    reward = networks.load(folder / "base", reward=True)
    reward.save_pretrained(folder / "whole")
    adapted = get_peft_model(reward, networks.lora_config(LoRA(rank=16, alpha=32), reward=True))
    adapted.save_pretrained(folder / "adapter")
    for kind in ("whole", "adapter"):
        tokenizer.save_pretrained(folder / kind)


def play(folder: Path, name: str) -> None:
    """Three steps in this arrangement; prints the peak above the imports."""
    torch.set_num_threads(1)
    imports = memory("VmRSS")
    weights, value = ARRANGEMENTS[name]
    shared = isinstance(weights, LoRA)
    spec = PPOSpec(
        base_model=1,
        dataset=1,
        weights=weights,
        value=value,
        rewards=Rewards(components=[RewardModelScore(models=[2])]),
    )
    base = folder / "base"
    model = ModelFolder(folder=folder / ("adapter" if shared else "whole"), adapter_base=base if shared else None)
    launch = Launch(
        spec=spec, folder=folder, base_model=base, rows=folder, row_type=RowType.PROMPT_ONLY, models={2: model}
    )
    cast = roles.cast(launch, spec, base)
    scorer = cast.scorers()[2] if shared else scoring.load_scorer(model.folder)
    optimizer = torch.optim.AdamW([p for p in cast.policy.parameters() if p.requires_grad], lr=1e-5)
    torch.manual_seed(0)
    for _ in range(3):
        ids = torch.randint(2, VOCABULARY, (ROWS, PROMPT + COMPLETION))
        texts = Texts(
            ids[:, :PROMPT], torch.ones(ROWS, PROMPT).long(), ids[:, PROMPT:], torch.ones(ROWS, COMPLETION).long()
        )
        scores = scorer.scores([Pair(row[:PROMPT], row[PROMPT:]) for row in ids.tolist()])
        with torch.no_grad(), cast.reference() as reference:
            known = read(reference, texts).logps
        said = read(cast.policy, texts, hidden=isinstance(value, ValueHead))
        values = cast.values(texts, said.hidden)
        returns = torch.tensor([[verdict.score] for verdict in scores])
        ((said.logps - known).square().mean() + (values - returns).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    print(memory("VmHWM") - imports)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        make(Path(place))
        peaks: dict[str, float] = {}
        for name in ARRANGEMENTS:
            command = [sys.executable, "-m", "tests.benchmarks.ppo_memory", place, name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[name] = float(done.stdout.split()[-1])
            print(f"{name:32s} {peaks[name]:7.0f} MiB  {peaks[name] / peaks['four models']:.2f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        play(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
