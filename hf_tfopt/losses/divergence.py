"""How far a student's distribution is from its teacher's, summed over rows of logits."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.registry import check_name

# Stands for log 0: exp of it is 0, and 0 times it is 0, not NaN.
LOG_OF_NOTHING = -1e30


@dataclass(frozen=True)
class DivergenceForm:
    """Which divergence, at which temperature, checked.

    Args:
        kind: an entry of `DIVERGENCES`.
        temperature: T > 0; both logits are divided by it, and the divergence is times T².
        beta: of "jsd", in (0, 1): the teacher's share of the mixture.

    Raises:
        ValueError: an unknown kind, or a value outside its range.
    """

    kind: str = "kl"
    temperature: float = 1.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_name("divergence", self.kind, DIVERGENCES)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0 and finite")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"beta is {self.beta}; it must be in (0, 1): towards 0 and 1 the divergence itself "
                "goes to 0 (take kind='kl' or 'reverse_kl' there)"
            )


class TopClasses(NamedTuple):
    """A teacher's distribution at one temperature, known for its k likeliest classes.

    Args:
        log_probs: [n, k].
        ids: [n, k], the classes.
        log_rest: [n], the log of the probability of all other classes together.
    """

    log_probs: Tensor
    ids: Tensor
    log_rest: Tensor

    def rows(self, rows: slice) -> "TopClasses":
        """Some rows of it."""
        return TopClasses(self.log_probs[rows], self.ids[rows], self.log_rest[rows])


def divergence(
    logits: Tensor,
    teacher_logits: Tensor,
    kind: str = "kl",
    temperature: float = 1.0,
    beta: float = 0.5,
) -> LossSum:
    """T² times the divergence of q = softmax(logits / T) from p = softmax(teacher_logits / T).

    Summed over rows, in fp32 or wider. With p the teacher's distribution and q the student's:

        "kl":          KL(p‖q) = Σ p log(p / q), as `F.kl_div(log_q, p, reduction="sum")`
        "reverse_kl":  KL(q‖p)
        "jsd":         β KL(p‖m) + (1 - β) KL(q‖m),  m = β p + (1 - β) q

    No gradient goes to the teacher. T² keeps the gradient's size while T changes.

    Args:
        logits: [..., C], of the student.
        teacher_logits: [..., C], of the same classes in the same order.
        kind: as above.
        temperature: T > 0.
        beta: of "jsd", in (0, 1).

    Raises:
        ValueError: shapes that differ, an unknown kind, a value outside its range.

    Paper: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network",
    https://arxiv.org/abs/1503.02531, section 2; for "jsd" Lin 1991, "Divergence Measures Based on
    the Shannon Entropy", equation 5.1, as Agarwal et al. 2024, "On-Policy Distillation of Language
    Models" (GKD), https://arxiv.org/abs/2306.13649, section 2, write it.
    """
    form = DivergenceForm(kind, temperature, beta)
    if logits.shape != teacher_logits.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and the teacher's of "
            f"{tuple(teacher_logits.shape)}: both must have the same rows and classes"
        )
    each = divergence_of_rows(logits, teacher_logits, form)
    return LossSum(each.sum(), torch.tensor(each.numel(), device=each.device))


def divergence_of_rows(
    logits: Tensor, teacher: Tensor | TopClasses, form: DivergenceForm
) -> Tensor:
    """`divergence` of each row of logits [..., C], not summed: [...].

    From a `TopClasses` it is the divergence of the distributions over its k classes and "any
    other": at most that over all classes, and the same where k is all of them.
    """
    log_q = torch.log_softmax(_wide(logits) / form.temperature, dim=-1)
    if isinstance(teacher, TopClasses):
        log_p, log_q = _coarse(teacher, log_q)
    else:
        log_p = torch.log_softmax(_wide(teacher.detach()) / form.temperature, dim=-1)
    each = DIVERGENCES[form.kind](
        log_p.clamp(min=LOG_OF_NOTHING), log_q.clamp(min=LOG_OF_NOTHING), form.beta
    )
    return each * form.temperature**2


def binary_divergence_of_elements(
    logits: Tensor, teacher_logits: Tensor, form: DivergenceForm
) -> Tensor:
    """The divergence where each class is a yes or no of its own: [..., C], one for each class."""
    student, teacher = (torch.stack([x, torch.zeros_like(x)], -1) for x in (logits, teacher_logits))
    return divergence_of_rows(student, teacher, form)


def top_classes(teacher_logits: Tensor, k: int, temperature: float) -> TopClasses:
    """The k likeliest of the classes of each row [n, C] and the mass of the rest, for a cache."""
    log_p = torch.log_softmax(_wide(teacher_logits) / temperature, dim=-1)
    log_probs, ids = log_p.topk(k, dim=-1)
    rest = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
    return TopClasses(log_probs, ids, rest.clamp(min=LOG_OF_NOTHING))


def _coarse(teacher: TopClasses, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Both distributions over the k classes, and the rest as one more where there is any."""
    log_p = teacher.log_probs.to(log_q)
    chosen = log_q.gather(-1, teacher.ids)
    if chosen.shape[-1] == log_q.shape[-1]:
        return log_p, chosen
    rest = log_q.scatter(-1, teacher.ids, -math.inf).logsumexp(-1, keepdim=True)
    return (
        torch.cat([log_p, teacher.log_rest.to(log_p).unsqueeze(-1)], -1),
        torch.cat([chosen, rest], -1),
    )


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _kl(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    # q - p adds up to 0, and takes out what rounding does to all of log q together: without it a
    # student that is near its teacher has a divergence of rounding errors, of any sign.
    p = log_p.exp()
    return (p * (log_p - log_q) + (log_q.exp() - p)).sum(-1)


def _reverse_kl(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    return _kl(log_q, log_p, beta)


def _jsd(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return beta * _kl(log_p, log_m, beta) + (1 - beta) * _kl(log_q, log_m, beta)


# (log p of the teacher, log q of the student, β) [..., C] -> [...]
DIVERGENCES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
}
