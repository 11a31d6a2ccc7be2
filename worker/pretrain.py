"""Makes the demo project's base model from nothing: ``python -m worker.pretrain <folder>``, minutes on one core.

A Llama of 0.4 million parameters with its own byte-level tokenizer, trained on ``backend.demo.corpus`` alone.
``backend/demo/base/`` is what this command writes; the weights are kept so that a newcomer need not wait for them.
With one thread and the pinned packages the same machine gives the same file.

Left out: everything that makes a language model general. It knows two-digit sums and rude support replies.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two threads on a busy machine are slower than one

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from backend.datasets.rows import Row
from backend.demo import corpus

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if not loop.first %}{{ '\\n' }}{% endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '\\n<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML with the line break *before* a turn, so that an assistant's turn ends exactly with the end-of-turn token."""

STEPS, BATCH, LEARNING_RATE = 900, 64, 4e-3


def make_tokenizer(rows: list[Row]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, every digit a token of its own: arithmetic is learned by column."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message["content"] for row in rows for column in ("prompt", "completion") for message in row[column]]
    bpe.train_from_iterator([*texts, "user\n", "assistant\n", "system\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", eos_token="<|im_end|>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


Encoded = tuple[list[int], list[int]]
"""Token ids, and labels in which the prompt's are -100."""


def encode(tokenizer: PreTrainedTokenizerFast, rows: list[Row]) -> list[Encoded]:
    """Rows as token ids and labels."""
    prompts = tokenizer.apply_chat_template(
        [row["prompt"] for row in rows], add_generation_prompt=True, return_dict=False
    )
    whole = tokenizer.apply_chat_template([row["prompt"] + row["completion"] for row in rows], return_dict=False)
    return [(ids, [-100] * len(prompt) + ids[len(prompt) :]) for prompt, ids in zip(prompts, whole, strict=True)]


def batch(rows: list[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Padded on the right to the longest row."""
    longest = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in rows]),  # (B, T)
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in rows]),
    }


def pretrain(folder: Path, *, seed: int = 0) -> None:
    """Write config, tokenizer and ``model.safetensors`` into *folder*; prints the held-out loss as it falls."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rows = corpus.pretraining(20_000, seed)
    tokenizer = make_tokenizer(rows[:4000])
    model = make_model(tokenizer)
    train = encode(tokenizer, rows)
    held_out = batch(encode(tokenizer, corpus.pretraining(200, seed, "held_out")), tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 20, STEPS)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)

    order: list[int] = []
    started = time.monotonic()
    for step in range(STEPS + 1):
        if step % 100 == 0:
            with torch.no_grad():
                loss = model(**held_out).loss.item()
            print(f"step {step}: held-out loss {loss:.3f}, {time.monotonic() - started:.0f} s", flush=True)
        if step == STEPS:
            break
        if len(order) < BATCH:
            order += torch.randperm(len(train)).tolist()
        rows_now, order = [train[i] for i in order[:BATCH]], order[BATCH:]
        model(**batch(rows_now, tokenizer.pad_token_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    pretrain(Path(sys.argv[1]))
