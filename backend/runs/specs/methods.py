"""One spec for each method. A hyperparameter exists only where it means something, so the variants nest."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from backend.runs.specs.parts import FSDP, DeepSpeed, Evaluation, Strict, TrainingSpec
from backend.runs.specs.refusals import refusal
from backend.runs.specs.rewards import Rewards, SoftOverlong

# --- supervised --------------------------------------------------------------------------------------------------


class SFTSpec(TrainingSpec):
    """Supervised fine-tuning: −log π(completion | prompt), averaged over tokens."""

    method: Literal["sft"] = "sft"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    completion_only: bool = True
    """Only completion tokens count in the loss (of conversations: what the assistant says); off, prompt tokens count too."""
    packing: bool = False
    """Put several rows into one sequence of the longest length, each blind to the others: less padding, the same loss."""


# --- reward models -----------------------------------------------------------------------------------------------


class RewardSpec(TrainingSpec):
    """Reward model: −log σ(r(chosen) − r(rejected) − margin). Bradley & Terry 1952; Ouyang et al. 2022, arXiv:2203.02155."""

    method: Literal["reward"] = "reward"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    use_margin: bool = False
    """Subtract the rows' margin from the reward difference (Touvron et al. 2023, arXiv:2307.09288, Eq. 2)."""
    use_probability: bool = False
    """Learn from the rows' probability that chosen is better (of several annotators; a tie is 0.5) instead of certainty."""
    centering: float = Field(0.01, ge=0)
    """λ in λ·(r(chosen) + r(rejected))², which keeps rewards around zero (Eisenstein et al. 2023, arXiv:2312.09244)."""


class AttributeRewardSpec(TrainingSpec):
    """Attribute scores: (r_k − score_k)², one head per attribute, the reward their weighted sum. Wang et al. 2024, arXiv:2406.12845."""

    method: Literal["attribute_reward"] = "attribute_reward"
    attributes: dict[str, float] = Field(min_length=1, max_length=64)
    """Weight of each attribute in the reward; the rows' scores of the other attributes are not learned."""


class ProcessRewardSpec(TrainingSpec):
    """Process reward model: is each step right? Cross-entropy at the end of every step. Lightman et al. 2023, arXiv:2305.20050."""

    method: Literal["process_reward"] = "process_reward"
    separator: str = Field("\n", min_length=1, max_length=20)
    """What ends a step; steps are joined with it, and one that holds it is cut there, as a text that is scored will be."""
    reduce: Literal["minimum", "product", "last"] = "minimum"
    """How the steps' scores become the solution's: the worst, the product, or the last."""
    first_error_only: bool = True
    """Steps after the first wrong one do not count: whether they are right means nothing any more."""


# --- offline preference ------------------------------------------------------------------------------------------


class Sigmoid(Strict):
    """−log σ(β·h), h the difference of log-ratios. Rafailov et al. 2023, arXiv:2305.18290, Eq. 7."""

    kind: Literal["sigmoid"] = "sigmoid"
    label_smoothing: float = Field(0, ge=0, lt=0.5)
    """Assumed share of flipped preferences (conservative DPO)."""
    sft_weight: float = Field(0, ge=0)
    """Weight of an added −log π(chosen | prompt) per token, which keeps the text well-formed."""


class IPO(Strict):
    """(h − 1/2β)², h the difference of per-token log-ratios. Azar et al. 2023, arXiv:2310.12036, Eq. 17."""

    kind: Literal["ipo"] = "ipo"


class Hinge(Strict):
    """max(0, 1 − β·h): pairs with enough margin push no more. Zhao et al. 2023, arXiv:2305.10425."""

    kind: Literal["hinge"] = "hinge"


class Robust(Strict):
    """((1−ε)·L(h) − ε·L(−h))/(1−2ε), unbiased under flipped labels. Chowdhury et al. 2024, arXiv:2403.00409."""

    kind: Literal["robust"] = "robust"
    label_smoothing: float = Field(0.1, gt=0, lt=0.5)
    """ε: the share of preferences that are flipped."""


class DPOSpec(TrainingSpec):
    """Direct preference optimization: learn from pairs without a reward model."""

    method: Literal["dpo"] = "dpo"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    loss: Annotated[Sigmoid | IPO | Hinge | Robust, Field(discriminator="kind")] = Field(default_factory=Sigmoid)
    """Which loss is put on the difference of log-ratios."""
    beta: float = Field(0.1, gt=0)
    """β, the strength of the KL constraint: a larger one keeps the policy nearer to the reference."""
    use_probability: bool = False
    """Weigh both directions by the rows' probability that chosen is better: a tie (0.5) pulls the margin to zero."""
    reference: Literal["beside", "before"] = "beside"
    """The reference's log-probabilities: computed beside every step (a second copy; for an adapter, the adapter switched off), or all of them before the first."""

    @model_validator(mode="after")
    def _whole_model_before(self) -> Self:
        if self.reference == "before" and isinstance(self.devices, FSDP | DeepSpeed):
            raise refusal(
                "reference",
                "before the first step the weights are not spread over the GPUs yet, so the reference cannot be computed "
                "then; choose the reference beside",
            )
        return self

    def columns(self) -> dict[str, str]:
        """The column of probabilities if they are read."""
        return {"probability": "use_probability"} if self.use_probability else {}


class KTOSpec(TrainingSpec):
    """Thumbs instead of pairs: each completion is desirable or not. Ethayarajh et al. 2024, arXiv:2402.01306, Eq. 8."""

    method: Literal["kto"] = "kto"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    beta: float = Field(0.1, gt=0)
    """β, the strength of the KL constraint."""
    desirable_weight: float = Field(1, gt=0)
    """λ_D: what a thumb up weighs. With n_D up and n_U down, keep λ_D·n_D / λ_U·n_U between 1 and 4/3."""
    undesirable_weight: float = Field(1, gt=0)
    """λ_U: what a thumb down weighs."""

    @model_validator(mode="after")
    def _neighbors(self) -> Self:
        if self.optimization.batch_size < 2:
            raise refusal(
                "optimization.batch_size",
                "the divergence is estimated from a row's neighbors in the batch; use a batch size of at least 2",
            )
        return self


class ORPOSpec(TrainingSpec):
    """Imitation and preference in one loss, without a reference: L_SFT − λ·log σ(log odds ratio). Hong et al. 2024, arXiv:2403.07691, Eq. 6."""

    method: Literal["orpo"] = "orpo"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    odds_weight: float = Field(0.1, ge=0)
    """λ: what the odds ratio weighs beside imitation."""


class SimPOSpec(TrainingSpec):
    """−log σ(β·(log π(chosen)/|chosen| − log π(rejected)/|rejected|) − γ), without a reference. Meng et al. 2024, arXiv:2405.14734, Eq. 6."""

    method: Literal["simpo"] = "simpo"
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is held out, and how often it is looked at."""
    beta: float = Field(2, gt=0)
    """β: scales the difference of mean log-probabilities."""
    gamma: float = Field(0.5, ge=0)
    """γ: the margin by which chosen should win."""
    sft_weight: float = Field(0, ge=0)
    """Weight of an added −log π(chosen | prompt) per token, which keeps the text well-formed."""


# --- reinforcement learning --------------------------------------------------------------------------------------


class Sampling(Strict):
    """How the policy writes while it learns."""

    max_new_tokens: int = Field(128, ge=1)
    """Longest completion; the prompt is cut on the left to the longest length without it."""
    temperature: float = Field(1, gt=0, le=10)
    """Divides the logits; 1 samples from the policy as it is."""


class FixedBeta(Strict):
    """The same β all the time."""

    kind: Literal["fixed"] = "fixed"
    beta: float = Field(0.05, ge=0)
    """β: what a nat of divergence costs; at 0 it is only measured."""


class AdaptiveBeta(Strict):
    """β follows the measured divergence towards a target. Ziegler et al. 2019, arXiv:1909.08593, Sec. 2.2."""

    kind: Literal["adaptive"] = "adaptive"
    initial: float = Field(0.05, gt=0)
    """β at the beginning."""
    target: float = Field(6, gt=0)
    """Divergence of a completion, in nats, to be kept."""
    horizon: int = Field(10_000, ge=1)
    """Completions over which β follows; smaller is faster."""


class KLPenalty(Strict):
    """Holds the policy near its reference."""

    beta: Annotated[FixedBeta | AdaptiveBeta, Field(discriminator="kind")] = Field(default_factory=FixedBeta)
    """Its strength."""
    place: Literal["reward", "loss"] = "reward"
    """Subtracted from the reward of every token, or added to the loss."""
    estimator: Literal["k1", "k2", "k3"] = "k1"
    """With ρ = log π/π_ref: k1 = ρ, k2 = ρ²/2, k3 = e^(−ρ) − 1 + ρ (Schulman 2020). In the reward k1 leads to the best policy; in the loss k2 does, k1 would do nothing, and k3 (DeepSeek's) pulls by KL(π_ref‖π) instead."""

    @model_validator(mode="after")
    def _pulls(self) -> Self:
        if self.place == "loss" and self.estimator == "k1":
            raise refusal(
                "estimator",
                "k1 in the loss has no gradient on average and holds nothing; use k2, or put it in the reward",
            )
        return self


def _loss_k3() -> KLPenalty:
    return KLPenalty(beta=FixedBeta(beta=0), place="loss", estimator="k3")


class ScoreCare(Strict):
    """What is done to scores before they are learned from."""

    clip: float = Field(0, ge=0)
    """Scores are cut to ±this; 0 leaves them."""
    missing_end_penalty: float = Field(0, ge=0)
    """Subtracted from the score of a completion that did not end by itself."""


class OnlineSpec(TrainingSpec):
    """What methods have in common that sample while they learn. A batch's rows are completions."""

    rewards: Rewards
    """What is good."""
    sampling: Sampling = Field(default_factory=Sampling)
    """How the policy writes."""
    scores: ScoreCare = Field(default_factory=ScoreCare)
    """What is done to scores."""
    batches_per_rollout: int = Field(1, ge=1, le=64)
    """Optimizer steps that share one sampling: that many batches of completions are sampled at once."""
    epochs: int = Field(1, ge=1, le=16)
    """μ: how often each sampled batch is learned from."""
    kl: KLPenalty = Field(default_factory=KLPenalty)
    """What holds the policy near its reference; the divergence is measured also at β = 0."""

    @model_validator(mode="after")
    def _can_sample(self) -> Self:
        if isinstance(self.devices, FSDP | DeepSpeed):
            raise refusal("devices", "a model that samples is whole on each device; choose one device or data parallel")
        for index, (name, component) in enumerate(self.rewards.named()):
            if isinstance(component, SoftOverlong) and component.buffer >= self.sampling.max_new_tokens:
                raise refusal(
                    f"rewards.components[{index}].buffer",
                    f"{name} would punish from the first token: its buffer must be shorter than the "
                    f"{self.sampling.max_new_tokens} tokens that are sampled",
                )
        return self

    def other_models(self) -> list[int]:
        """The models that score."""
        return self.rewards.other_models()

    def columns(self) -> dict[str, str]:
        """The columns that verifiers compare with."""
        return self.rewards.columns()


class ValueHead(Strict):
    """One more output on the policy's own backbone."""

    kind: Literal["head"] = "head"
    detached: bool = False
    """The value loss does not change the backbone."""


class ValueModel(Strict):
    """A backbone of its own for the value: of an adapter, a second adapter on the same frozen weights."""

    kind: Literal["model"] = "model"


class PPOSpec(OnlineSpec):
    """Proximal policy optimization: clipped policy and value losses on advantages by GAE. Schulman et al. 2017, arXiv:1707.06347; Ouyang et al. 2022, arXiv:2203.02155."""

    method: Literal["ppo"] = "ppo"
    value: Annotated[ValueHead | ValueModel, Field(discriminator="kind")] = Field(default_factory=ValueHead)
    """What predicts the return."""
    gamma: float = Field(1, gt=0, le=1)
    """γ: what a later reward is worth now."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of generalized advantage estimation: 0 trusts the value model, 1 the rollout. Schulman et al. 2015, arXiv:1506.02438."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε: the policy's ratio is kept in 1 ± ε."""
    value_clip: float = Field(0.2, gt=0)
    """A value may leave its old prediction by this much."""
    value_weight: float = Field(0.1, ge=0)
    """What the value loss weighs beside the policy loss."""
    value_rate: float = Field(10, gt=0, le=1000)
    """How many times the policy's learning rate the value's own weights (its head, backbone or adapter) learn with."""
    whiten_rewards: bool = False
    """Divide the rewards of a rollout by their standard deviation."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and standard deviation 1. With the penalty in the loss this changes its price against rewards."""

    @model_validator(mode="after")
    def _alone(self) -> Self:
        for index, (name, component) in enumerate(self.rewards.named()):
            if component.normalize == "group":
                raise refusal(
                    f"rewards.components[{index}].normalize",
                    f"{name} is normalized over the completions of a prompt, and PPO samples one of each; normalize it "
                    "over the batch, or not at all",
                )
        return self


class GroupAdvantage(Strict):
    """(r − mean of the prompt's completions) / standard deviation. Shao et al. 2024, arXiv:2402.03300, Sec. 4.1.2."""

    kind: Literal["group"] = "group"
    scale: Literal["group", "batch", "none"] = "group"
    """Divide by the deviation within the group, over the batch, or not at all (Dr. GRPO: Liu et al. 2025, arXiv:2503.20783)."""


class LeaveOneOut(Strict):
    """r − mean of the prompt's other completions: RLOO. Ahmadian et al. 2024, arXiv:2402.14740."""

    kind: Literal["leave_one_out"] = "leave_one_out"


class BatchBaseline(Strict):
    """r − mean over the batch, scaled by its deviation: REINFORCE with a baseline. Williams 1992; Hu 2025, arXiv:2501.03262."""

    kind: Literal["batch"] = "batch"


class KeepAll(Strict):
    """Every group is learned from; one whose completions score the same teaches nothing."""

    kind: Literal["all"] = "all"


class Resample(Strict):
    """Dynamic sampling: groups without spread are replaced by new prompts. DAPO: Yu et al. 2025, arXiv:2503.14476, Sec. 3.2."""

    kind: Literal["resample"] = "resample"
    max_rounds: int = Field(4, ge=2, le=32)
    """How often is sampled at most; groups that still have no spread leave the loss."""


class GRPOSpec(OnlineSpec):
    """Group relative policy optimization, its repairs, and the baselines RLOO and REINFORCE. Shao et al. 2024, arXiv:2402.03300."""

    method: Literal["grpo"] = "grpo"
    group_size: int = Field(8, ge=2, le=256)
    """G: completions per prompt that are compared with each other."""
    advantage: Annotated[GroupAdvantage | LeaveOneOut | BatchBaseline, Field(discriminator="kind")] = Field(
        default_factory=GroupAdvantage
    )
    """What a completion is compared with."""
    ratio: Literal["token", "sequence"] = "token"
    """π/π_old of every token, or its geometric mean over the completion (GSPO: Zheng et al. 2025, arXiv:2507.18071)."""
    average: Literal["token", "completion", "constant"] = "token"
    """Over all tokens (DAPO), over each completion first (GRPO), or by a constant length (Dr. GRPO)."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """The ratio is kept above 1 − this."""
    clip_high: float = Field(0.28, gt=0)
    """The ratio is kept below 1 + this; more than below leaves room to explore (DAPO's clip-higher)."""
    kl: KLPenalty = Field(default_factory=_loss_k3)
    """What holds the policy near its reference; measured also at β = 0."""
    groups: Annotated[KeepAll | Resample, Field(discriminator="kind")] = Field(default_factory=KeepAll)
    """What happens to groups without spread."""
    drop_unfinished: bool = False
    """Completions that did not end leave the loss, not the mean of their group (DAPO's overlong filtering)."""

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        how = self.optimization
        if (how.batch_size * how.accumulation) % self.group_size:
            raise refusal(
                "group_size",
                f"{how.batch_size} × {how.accumulation} completions a step are not whole groups of {self.group_size}; "
                "make batch size × accumulation a multiple of the group size",
            )
        return self
