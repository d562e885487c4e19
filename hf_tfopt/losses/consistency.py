"""How far two outputs of one model for the same inputs are apart; both are trained."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_tfopt.losses.reduction import LossSum


def symmetric_kl(first: Tensor, second: Tensor, is_multi_label: bool = False) -> LossSum:
    """KL divergence both ways, summed over rows.

    Equals `KL(p || q) + KL(q || p) = sum((p - q) * (log p - log q))` with p = softmax(first) and
    q = softmax(second), in fp32 or wider; the count is the number of rows. With several labels at
    once each class is a distribution of its own, p = sigmoid(first): the sum is then over rows and
    classes, and so is the count.

    Args:
        first: logits [..., C].
        second: logits of the same shape.
        is_multi_label: several labels at once.

    Raises:
        ValueError: shapes that do not match.

    Paper: Jiang et al. 2020, "SMART", https://arxiv.org/abs/1911.03437, the ℓ_s of classification
    (section 3.1).
    """
    first, second = _wide(first, second)
    if is_multi_label:
        each = (first.sigmoid() - second.sigmoid()) * (first - second)
        return LossSum(each.sum(), _number(each.numel(), each))
    log_p, log_q = first.log_softmax(-1), second.log_softmax(-1)
    total = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum()
    return LossSum(total, _number(first[..., 0].numel(), first))


def kl_from(fixed: Tensor, logits: Tensor, is_multi_label: bool = False) -> LossSum:
    """KL divergence from one distribution to another, summed over rows; only the latter is trained.

    Equals `KL(p || q) = sum(p * (log p - log q))` with p = softmax(fixed.detach()) and
    q = softmax(logits), in fp32 or wider. Count and `is_multi_label` as in `symmetric_kl`.

    Args:
        fixed: logits [..., C], without gradient.
        logits: of the same shape.
        is_multi_label: several labels at once.

    Raises:
        ValueError: shapes that do not match.

    Paper: Miyato et al. 2018, "Virtual Adversarial Training", https://arxiv.org/abs/1704.03976,
    equation 5.
    """
    fixed, logits = _wide(fixed.detach(), logits)
    if is_multi_label:
        # each class against its complement
        fixed = torch.stack([F.logsigmoid(fixed), F.logsigmoid(-fixed)], -1)
        logits = torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)], -1)
    log_p, log_q = fixed.log_softmax(-1), logits.log_softmax(-1)
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return LossSum(total, _number(fixed[..., 0].numel(), fixed))


def squared_distance(first: Tensor, second: Tensor) -> LossSum:
    """`sum((first - second)²)` over all numbers, in fp32 or wider; the count is theirs.

    Args:
        first: [..., C], the numbers predicted.
        second: of the same shape.

    Raises:
        ValueError: shapes that do not match.

    Paper: Jiang et al. 2020, "SMART", the ℓ_s of regression (section 3.1).
    """
    first, second = _wide(first, second)
    return LossSum((first - second).square().sum(), _number(first.numel(), first))


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.shape != second.shape:
        raise ValueError(
            f"outputs of shapes {tuple(first.shape)} and {tuple(second.shape)}: two outputs for "
            "the same inputs have one shape"
        )
    wide = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(wide), second.to(wide)


def _number(count: int, like: Tensor) -> Tensor:
    return torch.tensor(count, device=like.device)
