"""What the form of a new run starts from: what people have, the method it leads to, its equation, and presets by name.

Pure data. A preset sets some paths of the spec; presets come in groups that each own their paths, so that a size and a
variant and the rewards are chosen independently of each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backend.runs import specs


@dataclass(frozen=True)
class Preset:
    """Values for the form by dotted path (a union or a list stands there whole), with what they are for."""

    name: str
    does: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PresetGroup:
    """Presets of which one is chosen; choosing it resets what the others of the group set."""

    name: str
    presets: tuple[Preset, ...]


_TINY: dict[str, Any] = {
    "optimization.batch_size": 32,
    "optimization.warmup_steps": 5,
    "evaluation.max_rows": 128,
    "max_length": 128,
}
"""What the tiny model of the demo takes about a minute for on two CPU cores; a test holds it equal to the demo's specs."""

_TINY_TEXTS: dict[str, Any] = {"evaluation.max_new_tokens": 48}
"""Besides, for methods whose model is asked for texts only at evaluations."""

_LARGE: dict[str, Any] = {
    "optimization.steps": 500,
    "optimization.batch_size": 4,
    "optimization.accumulation": 8,
    "optimization.warmup_steps": 20,
    "weights": {"kind": "lora", "rank": 16, "alpha": 32},
}


def _sizes(tiny: dict[str, Any], tiny_lora: dict[str, Any], large: dict[str, Any]) -> PresetGroup:
    tiny = _TINY | tiny
    return PresetGroup(
        "Size",
        (
            Preset("Tiny model", "The tiny model of the demo: about a minute on two CPU cores.", tiny),
            Preset("Tiny, LoRA", "The same with an adapter.", tiny | {"weights": {"kind": "lora"}} | tiny_lora),
            Preset("Large, LoRA", "A model of a billion parameters or more on one GPU.", _LARGE | large),
            Preset("Defaults", "Every field at its default.", {}),
        ),
    )


def _rates(steps: int, tiny: float, lora: float, large: float, **more: Any) -> PresetGroup:
    """Sizes that differ in steps and learning rate only, besides what *more* sets for the tiny ones."""
    rate = "optimization.learning_rate"
    return _sizes({"optimization.steps": steps, rate: tiny} | more, {rate: lora}, {rate: large})


_ANSWER = {"kind": "number", "name": "correct", "column": "answer", "answer": "last_number"}
_FORMAT = {"kind": "tags", "name": "format", "tags": ["think", "answer"]}
_REWARD_MODEL = {"kind": "reward_model", "models": []}
"""The form puts the project's newest reward model in."""

REWARDS = PresetGroup(
    "Rewards",
    (
        Preset("Answer", "The last number must be the row's.", {"rewards": {"components": [_ANSWER]}}),
        Preset(
            "R1-Zero: accuracy + format",
            "Mathematics checked by equivalence, and thinking apart from the answer; works on a base model without SFT. arXiv:2501.12948",
            {
                "rewards": {
                    "components": [
                        _FORMAT | {"weight": 0.5},
                        {"kind": "math", "name": "accuracy", "column": "answer", "answer": "answer_tag"},
                    ]
                }
            },
        ),
        Preset(
            "Code with tests",
            "Programs run in the sandbox against hidden tests.",
            {"rewards": {"components": [{"kind": "code", "column": "tests"}]}},
        ),
        Preset(
            "Instructions",
            "Checkable instructions of the row (IFEval). arXiv:2311.07911",
            {"rewards": {"components": [{"kind": "constraints", "column": "constraints"}]}},
        ),
        Preset("Reward model", "What a reward model says.", {"rewards": {"components": [_REWARD_MODEL]}}),
        Preset(
            "Cautious ensemble",
            "Several reward models; where they disagree the reward is less. arXiv:2310.02743",
            {"rewards": {"components": [_REWARD_MODEL | {"agreement": {"kind": "cautious"}}]}},
        ),
    ),
)

_NO_KL = {"kl": {"beta": {"kind": "fixed", "beta": 0}, "place": "loss", "estimator": "k3"}}
_SYMMETRIC = {"clip_low": 0.2, "clip_high": 0.2}
_ON_POLICY = {"ratio": "token", "epochs": 1} | _SYMMETRIC

VARIANTS = PresetGroup(
    "Variant",
    (
        Preset(
            "GRPO (DeepSeekMath)",
            "Every completion counts the same, groups are scaled by their deviation, k3 in the loss. arXiv:2402.03300",
            {
                "average": "completion",
                "kl": {"beta": {"kind": "fixed", "beta": 0.04}, "place": "loss", "estimator": "k3"},
            }
            | _SYMMETRIC,
        ),
        Preset(
            "Dr. GRPO",
            "Without the two normalizations that favor long wrong answers and easy prompts. arXiv:2503.20783",
            {"advantage": {"kind": "group", "scale": "none"}, "average": "constant"} | _NO_KL | _SYMMETRIC,
        ),
        Preset(
            "DAPO",
            "Clip-higher, token-level loss, groups without spread resampled, unfinished completions left out. arXiv:2503.14476",
            {
                "average": "token",
                "clip_low": 0.2,
                "clip_high": 0.28,
                "groups": {"kind": "resample"},
                "drop_unfinished": True,
            }
            | _NO_KL,
        ),
        Preset(
            "GSPO",
            "One ratio per completion instead of one per token, clipped tightly. arXiv:2507.18071",
            {"ratio": "sequence", "average": "completion", "clip_low": 3e-4, "clip_high": 4e-4} | _NO_KL,
        ),
        Preset(
            "RLOO",
            "Each completion against the mean of the others, KL in the reward. arXiv:2402.14740",
            {
                "advantage": {"kind": "leave_one_out"},
                "average": "completion",
                "kl": {"beta": {"kind": "fixed", "beta": 0.05}, "place": "reward", "estimator": "k1"},
            }
            | _ON_POLICY,
        ),
        Preset(
            "REINFORCE",
            "Against the mean of the whole batch. Williams 1992; arXiv:2501.03262",
            {
                "advantage": {"kind": "batch"},
                "average": "token",
                "kl": {"beta": {"kind": "fixed", "beta": 0.01}, "place": "reward", "estimator": "k1"},
            }
            | _ON_POLICY,
        ),
        Preset("Defaults", "Every field at its default.", {}),
    ),
)

_TINY_ONLINE = {
    "optimization.batch_size": 64,
    "optimization.learning_rate": 1e-4,
    "optimization.schedule": "constant",
    "optimization.warmup_steps": 3,
}
_LARGE_ONLINE = {
    "optimization.steps": 300,
    "optimization.batch_size": 16,
    "optimization.accumulation": 4,
    "optimization.schedule": "constant",
    "sampling.max_new_tokens": 512,
    "max_length": 1024,
}
_TINY_PPO: dict[str, Any] = (
    _TINY
    | _TINY_ONLINE
    | {
        "optimization.steps": 100,
        "sampling.max_new_tokens": 48,
        "scores.missing_end_penalty": 1,
        "epochs": 2,
        "kl": {"beta": {"kind": "fixed", "beta": 0.1}, "place": "reward", "estimator": "k1"},
    }
)
_ONE_BACKBONE = {"weights": {"kind": "lora"}, "value": {"kind": "model"}}

PRESETS: dict[str, tuple[PresetGroup, ...]] = {
    "sft": (_rates(80, 5e-4, 5e-3, 2e-4, **_TINY_TEXTS),),
    "reward": (_rates(60, 5e-4, 2e-3, 1e-4, **_TINY_TEXTS),),
    "attribute_reward": (_rates(100, 1e-3, 2e-3, 1e-4),),
    "process_reward": (
        _rates(
            150,
            1e-3,
            5e-3,
            1e-4,
            **{
                "optimization.batch_size": 64,
                "evaluation.every_steps": 30,
                "checkpoints.every_steps": 30,
                "optimization.warmup_steps": 10,
                "separator": ".",
            },
        ),
    ),
    "dpo": (
        _sizes(
            {
                "optimization.steps": 100,
                "optimization.learning_rate": 2e-4,
                "beta": 0.5,
                "loss": {"kind": "sigmoid", "sft_weight": 1},
            }
            | _TINY_TEXTS,
            {"optimization.learning_rate": 1e-3},
            {"optimization.learning_rate": 5e-6, "beta": 0.1},
        ),
    ),
    "kto": (_rates(120, 2e-4, 1e-3, 5e-6, beta=1, **_TINY_TEXTS),),
    "orpo": (_rates(120, 3e-4, 2e-3, 8e-6, odds_weight=0.3, **_TINY_TEXTS),),
    "simpo": (_rates(120, 2e-4, 1e-3, 1e-6, sft_weight=0.5, **_TINY_TEXTS),),
    "ppo": (
        PresetGroup(
            "Size",
            (
                Preset("Tiny model", "The tiny model of the demo, with the value as a head on the policy.", _TINY_PPO),
                Preset(
                    "Tiny, four models",
                    "Policy, reference, value and reward each with weights of their own.",
                    _TINY_PPO | {"value": {"kind": "model"}},
                ),
                Preset(
                    "Tiny, one backbone (adapters)",
                    "All four roles on the same frozen weights: policy, value and reward are adapters, the reference none.",
                    _TINY_PPO | _ONE_BACKBONE | {"optimization.learning_rate": 2e-3},
                ),
                Preset(
                    "Large, one backbone (adapters)",
                    "A model of a billion parameters or more on one GPU.",
                    _LARGE_ONLINE
                    | _ONE_BACKBONE
                    | {"weights": {"kind": "lora", "rank": 32, "alpha": 64}, "optimization.learning_rate": 1e-5},
                ),
                Preset("Defaults", "Every field at its default.", {}),
            ),
        ),
        PresetGroup("Rewards", (REWARDS.presets[4], REWARDS.presets[5], *REWARDS.presets[:4])),
    ),
    "grpo": (
        VARIANTS,
        REWARDS,
        _sizes(
            _TINY_ONLINE | {"optimization.steps": 80, "sampling.max_new_tokens": 40, "group_size": 8},
            {"optimization.learning_rate": 2e-3},
            _LARGE_ONLINE | {"optimization.learning_rate": 1e-5},
        ),
    ),
}


# --- what do you have? ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A method that something people have leads to."""

    method: str
    title: str
    because: str


@dataclass(frozen=True)
class Have:
    """What somebody has, and the methods it leads to, the usual one first."""

    name: str
    detail: str
    ways: tuple[Way, ...]


CHOICES: tuple[Have, ...] = (
    Have(
        "Demonstrations", "texts or conversations as they should be",
        (Way("sft", "SFT", "imitates the completions word by word. It is the first step for almost every model: it teaches the form in which preferences are learned later."),),
    ),
    Have(
        "Pairs", "two answers, one preferred",
        (
            Way("dpo", "DPO", "learns from pairs directly, without a reward model in between: one model to train, a frozen copy to compare with. β says how far it may move."),
            Way("simpo", "SimPO", "learns from pairs without a reference: half the memory of DPO, and the length does not count. Nothing holds the model near its start, so watch the texts."),
            Way("orpo", "ORPO", "imitates the chosen text and pushes the rejected one away in one loss, without SFT before and without a reference."),
            Way("reward", "Reward model", "learns to score texts so that the preferred one scores higher. Its held-out accuracy tells how much of the preference can be learned at all."),
        ),
    ),
    Have(
        "Thumbs", "single answers, good or bad",
        (Way("kto", "KTO", "needs no pairs: every answer is desirable or not, compared with what the model usually says. Pairs can be used as two thumbs each."),),
    ),
    Have(
        "Scores", "answers with numbers: helpful 4, correct 2 …",
        (Way("attribute_reward", "Attribute scores", "learns one number for each attribute and adds them with weights that you choose, and can change your mind about."),),
    ),
    Have(
        "Steps", "solutions, each step right or wrong",
        (Way("process_reward", "Process reward", "learns to judge every step of a solution, so that a right answer by a wrong way is told apart."),),
    ),
    Have(
        "Prompts with a way to check", "an answer, tests, a format, instructions",
        (Way("grpo", "GRPO", "compares several completions of the same prompt with each other, so it needs no value model: half the memory of PPO. It learns only from prompts that are sometimes solved and sometimes not."),),
    ),
    Have(
        "Prompts and a reward model", "nothing to check, but something that scores",
        (
            Way("ppo", "PPO", "learns from single completions with a value model that foresees their reward, held near the reference by a KL. With adapters all four models share one backbone."),
            Way("grpo", "GRPO", "takes reward models too: several completions of a prompt instead of a value model."),
        ),
    ),
)  # fmt: skip


# --- equations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equation:
    """What a method minimizes, in Unicode, and what its letters mean."""

    lines: tuple[str, ...]
    letters: str = ""


EQUATIONS: dict[str, Equation] = {
    "sft": Equation(("L = −∑ₜ log π(yₜ | x, y₍<ₜ₎) / |y|",), "x the prompt, y the completion, π the model"),
    "reward": Equation(
        ("L = −log σ( r(x, y⁺) − r(x, y⁻) − m ) + λ·( r(x, y⁺) + r(x, y⁻) )²",),
        "y⁺ the chosen text, y⁻ the rejected one, m the margin, λ the centering",
    ),
    "attribute_reward": Equation(
        ("L = ∑ₖ ( rₖ(x, y) − sₖ )²", "r(x, y) = ∑ₖ wₖ · rₖ(x, y)"), "sₖ the given score of attribute k, wₖ its weight"
    ),
    "process_reward": Equation(
        ("L = −∑ᵢ [ lᵢ log pᵢ + (1 − lᵢ) log(1 − pᵢ) ]", "score = minᵢ pᵢ, or ∏ᵢ pᵢ, or the last"),
        "pᵢ the probability that step i is right, lᵢ its label",
    ),
    "dpo": Equation(
        ("L = −log σ( β·h )", "h = log π(y⁺|x)/π₀(y⁺|x) − log π(y⁻|x)/π₀(y⁻|x)"),
        "π₀ the reference, β the pull to it; the loss on h is chosen below",
    ),
    "kto": Equation(
        ("L = λ_D·(1 − σ(β·(h − z₀)))  for a thumb up", "L = λ_U·(1 − σ(β·(z₀ − h)))  for a thumb down"),
        "h = log π(y|x)/π₀(y|x), z₀ = KL(π ‖ π₀) over the batch",
    ),
    "orpo": Equation(
        ("L = L_SFT(y⁺) − λ·log σ( log odds(y⁺|x) − log odds(y⁻|x) )", "odds(y|x) = p / (1 − p)"),
        "p the mean probability per token",
    ),
    "simpo": Equation(
        ("L = −log σ( β·( log π(y⁺|x)/|y⁺| − log π(y⁻|x)/|y⁻| ) − γ )",), "γ the margin by which the chosen text should win"
    ),
    "ppo": Equation(
        (
            "L = −min( ρA, clip(ρ, 1−ε, 1+ε)·A ) + c·(V − R)²",
            "Aₜ = ∑ₗ (γλ)ˡ δₜ₊ₗ,  δₜ = rₜ + γVₜ₊₁ − Vₜ,  rₜ = score − β·log π/π₀",
        ),
        "ρ = π/π_old of a token, V the value, R the return",
    ),
    "grpo": Equation(
        ("L = −min( ρAᵢ, clip(ρ, 1−ε↓, 1+ε↑)·Aᵢ ) + β·KL(π ‖ π₀)", "Aᵢ = ( rᵢ − mean r ) / std r  over the G completions of a prompt"),
        "ρ = π/π_old; how A is scaled, what ρ is of and how tokens are averaged are fields below",
    ),
}  # fmt: skip


def way(method: str) -> Way:
    """The first way that leads to *method*."""
    return next(way for have in CHOICES for way in have.ways if way.method == method)


def needs(have: Have) -> frozenset[Any]:
    """Row types that the first of its ways can learn from."""
    return specs.NEEDS[have.ways[0].method]
