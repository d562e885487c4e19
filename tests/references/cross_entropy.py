"""The linear head's loss the obvious way: all logits, then PyTorch's cross-entropy."""

import torch
import torch.nn.functional as F

IGNORE = -100


def naive_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    **options: object,
) -> torch.Tensor:
    logits = logit_scale * (hidden @ weight.t())
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return naive_cross_entropy(logits, labels, label_smoothing, **options)


def naive_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """The papers' formulas, one row at a time."""
    num_classes = logits.shape[-1]
    weights = torch.ones(num_classes) if class_weights is None else class_weights
    weights = weights.to(logits)
    total = logits.new_zeros(())
    for row, label in zip(logits.flatten(0, -2), labels.flatten().tolist(), strict=True):
        if label == IGNORE:
            continue
        log_p = F.log_softmax(row, dim=-1)
        target = torch.full_like(row, label_smoothing / num_classes)
        target[label] += 1 - label_smoothing
        loss = -(target * weights * log_p).sum()
        loss = loss * (1 - log_p[label].exp()) ** focal_gamma
        total = total + loss + z_loss * weights[label] * row.exp().sum().log() ** 2
    return total
