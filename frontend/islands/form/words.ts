/** What the form calls things, and which fields stand in front. The sentences themselves come from the schema. */

const LABELS: Record<string, string> = {
  base_model: "Base model",
  dataset: "Dataset version",
  sft_weight: "SFT weight",
  beta2: "Adam β₂",
  completion_only: "Completions only",
  use_margin: "Use the margin",
  use_probability: "Use the probability",
  held_out: "Held out",
  max_rows: "Rows at most",
  every_steps: "Every … steps",
  alpha: "LoRA alpha",
  rank: "LoRA rank",
  dropout: "LoRA dropout",
  dora: "DoRA",
  group_size: "Completions per prompt",
  gamma: "γ",
  gae_lambda: "λ of GAE",
  epochs: "Passes over a rollout",
  odds_weight: "Odds weight",
  only_if: "Only if",
  first_error_only: "Only up to the first mistake",
  json_schema: "JSON schema",
  ngram: "Words per n-gram",
  models: "Reward models",
  model: "Process reward model",
  max_new_tokens: "Longest completion",
};

const AT: Record<string, string> = {
  "simpo:beta": "Scale β",
  "simpo:gamma": "Margin γ",
  "orpo:odds_weight": "Weight of the odds λ",
  beta: "Pull to the reference",
  "kl.beta": "Pull to the reference",
  "kl.beta.beta": "Strength β",
  "kl.place": "Where the KL counts",
  "kl.estimator": "KL estimator",
  "kl.beta.target": "Divergence to keep",
  average: "Average over",
  ratio: "Ratio of",
  value: "Value model",
};

export const CHOICES: Record<string, string> = {
  full: "All weights",
  lora: "LoRA adapter",
  qlora: "QLoRA (4 bits, needs a GPU)",
  sigmoid: "Sigmoid (DPO)",
  ipo: "IPO",
  hinge: "Hinge (SLiC)",
  robust: "Robust",
  one: "One device",
  data_parallel: "Data parallel",
  fsdp: "FSDP",
  deepspeed: "DeepSpeed",
  head: "A head on the policy",
  model: "A model of its own",
  fixed: "Fixed",
  adaptive: "Adaptive",
  group: "The prompt's completions (GRPO)",
  leave_one_out: "The prompt's other completions (RLOO)",
  batch: "The whole batch (REINFORCE)",
  all: "Kept",
  resample: "Resampled (DAPO)",
  reward_model: "Reward model",
  process_reward: "Process reward model",
  exact: "Exact answer",
  number: "Numeric answer",
  math: "Mathematics",
  code: "Code with tests",
  tags: "Tags",
  json: "JSON",
  pattern: "Regular expression",
  constraints: "Instructions (IFEval)",
  length: "Length",
  overlong: "Soft overlong (DAPO)",
  repetition: "Repetition",
  mean: "Mean",
  minimum: "Minimum",
  cautious: "Mean − λ · deviation",
};

export const AFTER: Record<string, string> = {
  "optimization.steps": "optimizer steps",
  "optimization.batch_size": "rows",
  "optimization.accumulation": "passes a step",
  "optimization.warmup_steps": "steps",
  "evaluation.held_out": "of the prompts",
  "evaluation.every_steps": "steps",
  "checkpoints.every_steps": "steps",
  "evaluation.max_new_tokens": "tokens",
  "evaluation.completions": "prompts",
  "sampling.max_new_tokens": "tokens",
  group_size: "completions",
  max_length: "tokens",
  "kl.beta.beta": "β",
};

export const last = (path: string): string => path.split(".").at(-1) ?? path;
export const idOf = (path: string): string => `spec-${path.replaceAll(".", "-")}`;

export function label(path: string, method = ""): string {
  const name = last(path);
  return AT[`${method}:${path}`] ?? AT[path] ?? LABELS[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
}

/** Fields that stand in front, in this order; what lies below one stands with it. */
const ESSENTIAL = ["base_model", "dataset", "rewards", "attributes", "group_size", "sampling.max_new_tokens", "optimization.steps", "optimization.learning_rate", "loss", "beta", "kl.beta", "weights"];

export interface Group {
  name: string;
  title: string;
  said: string;
}

interface Held extends Group {
  paths: string[];
}

const HELD: Held[] = [
  { name: "advantage", title: "Advantage and groups", said: "What a completion is compared with, and what happens where all score the same.", paths: ["advantage", "groups"] },
  { name: "value", title: "Value model", said: "What foresees the reward, and how far ahead.", paths: ["value", "value_clip", "value_weight", "gamma", "gae_lambda", "whiten_rewards", "whiten_advantages"] },
  { name: "loss", title: "Loss and clipping", said: "How far one step may go, and what is averaged.", paths: ["ratio", "average", "clip", "clip_low", "clip_high", "drop_unfinished"] },
  { name: "kl", title: "KL to the reference", said: "Where the pull counts and how it is estimated.", paths: ["kl"] },
  { name: "sampling", title: "Sampling and scores", said: "How completions are written, and what is done to their scores.", paths: ["sampling", "scores", "batches_per_rollout", "epochs"] },
  { name: "rows and seed", title: "Rows and seed", said: "How long a row may be, and what chance decides.", paths: ["max_length", "seed"] },
];

const within = (path: string, parent: string): boolean => path === parent || path.startsWith(`${parent}.`);

/** The place among the essential fields, or -1. *online* methods have too many fields to show them all in front. */
export function essential(path: string, online: boolean): number {
  const place = ESSENTIAL.findIndex((front) => within(path, front));
  if (place >= 0) return place;
  const isOther = path.includes(".") || online || HELD.some((held) => held.name === "rows and seed" && held.paths.includes(path)) || path === "devices";
  return isOther ? -1 : ESSENTIAL.length;
}

/** The fold that a field belongs to. */
export function groupOf(path: string, sentence: (name: string) => string): Group {
  const held = HELD.find((group) => group.paths.some((parent) => within(path, parent)));
  if (held) return held;
  const name = path.split(".")[0] as string;
  return { name, title: label(name), said: sentence(name) };
}

/** Folds of the method come first, rows and seed last. */
export function orderOf(group: Group): number {
  const place = HELD.findIndex((held) => held.name === group.name);
  return place < 0 ? HELD.length - 1 : place === HELD.length - 1 ? HELD.length : place;
}

/** A sentence's first part, without its paper. */
export function short(text: string): string {
  return text.replace(/(?<=[.:]) [A-Z][^.]*(?:\d{4}|arXiv).*$/s, "").replace(/^(.{20,}?[^A-Z]\.) .*$/s, "$1");
}
