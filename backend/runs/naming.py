"""What a run is called that nobody named."""

from backend.runs.specs import (
    TITLES,
    AdaptiveBeta,
    AnySpec,
    BatchBaseline,
    DPOSpec,
    GRPOSpec,
    KTOSpec,
    LeaveOneOut,
    PPOSpec,
    Resample,
    SimPOSpec,
)


def name_of(spec: AnySpec, model: str) -> str:
    """What people would call it: the variant's own name, and β where it decides."""
    method, beta = TITLES[spec.method], 0.0
    match spec:
        case DPOSpec(loss=loss, beta=beta):
            method = {"sigmoid": method, "ipo": "IPO", "hinge": "Hinge DPO", "robust": "Robust DPO"}[loss.kind]
        case KTOSpec(beta=beta) | SimPOSpec(beta=beta):
            pass
        case PPOSpec(kl=penalty) | GRPOSpec(kl=penalty):
            beta = penalty.beta.initial if isinstance(penalty.beta, AdaptiveBeta) else penalty.beta.beta
    if isinstance(spec, GRPOSpec):
        method = _group_method(spec)
    return f"{method} on {model}" + (f", β {beta:g}" if beta else "")


def _group_method(spec: GRPOSpec) -> str:
    match spec.advantage:
        case LeaveOneOut():
            return "RLOO"
        case BatchBaseline():
            return "REINFORCE"
    if spec.ratio == "sequence":
        return "GSPO"
    if isinstance(spec.groups, Resample):
        return "DAPO"
    if spec.advantage.scale == "none" and spec.average == "constant":
        return "Dr. GRPO"
    return "GRPO"
