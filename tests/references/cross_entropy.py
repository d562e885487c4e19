"""The linear head's loss the obvious way: all logits, then PyTorch's cross-entropy."""

import torch
import torch.nn.functional as F


def naive_linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    bias: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    logits = logit_scale * (hidden @ weight.t())
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    return F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing, reduction="sum"
    )
