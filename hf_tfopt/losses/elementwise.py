"""Losses of outputs that are independent of one another: several labels at once, numbers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_tfopt.losses.cross_entropy import CrossEntropyForm, focal_factor
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum


def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
    focal_gamma: float = 0.0,
) -> LossSum:
    """Binary cross-entropy of several labels at once, summed over examples and classes.

    Equals `F.binary_cross_entropy_with_logits(logits, (1 - ε) * labels + ε / 2, reduction="sum",
    weight=class_weights)` over the elements that have a target. With γ each element is multiplied
    by `|y - p|^γ`, where p = sigmoid(logit).

    Args:
        logits: [..., C].
        labels: [..., C], in [0, 1]; NaN (whole numbers: -100) where there is no target.
        label_smoothing: ε in [0, 1): each target moves by ε / 2 towards 1/2.
        class_weights: [C]; the count is then the sum of the elements' weights.
        focal_gamma: γ, at least 0; not with label_smoothing.

    Raises:
        ValueError: shapes that do not match, a label outside [0, 1], an option out of its range.

    Paper: Szegedy et al. 2016, section 7, with two classes for each label; Lin et al. 2017, "Focal
    Loss", equation 4. Differs: labels may be fractions.
    """
    form = CrossEntropyForm(label_smoothing, focal_gamma=focal_gamma)
    outputs, targets, known = _paired(logits, labels)
    _check_share(targets[known])
    weights = known.to(outputs.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(outputs)
    wanted = torch.where(known, targets, 0)
    smoothed = (1 - form.label_smoothing) * wanted + form.label_smoothing / 2
    each = F.binary_cross_entropy_with_logits(outputs, smoothed, reduction="none")
    if form.focal_gamma:
        each = each * focal_factor((wanted - outputs.sigmoid()).abs(), form.focal_gamma)
    return LossSum((weights * each).sum(), weights.sum())


def squared_error(logits: Tensor, labels: Tensor) -> LossSum:
    """Squared error of numbers, summed over examples and outputs.

    Equals `F.mse_loss(logits.squeeze(-1), labels, reduction="sum")` over the elements that have a
    target, in fp32 or wider.

    Args:
        logits: [..., C], the numbers predicted; [..., 1] for labels of one dimension less.
        labels: the same shape, or without the 1; NaN (whole numbers: -100) where there is no
            target.

    Raises:
        ValueError: shapes that do not match.

    Paper: none.
    """
    outputs, targets, known = _paired(logits, labels)
    return LossSum((outputs - targets)[known].square().sum(), known.sum())


def _paired(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and targets of one shape in fp32 or wider, and where there is a target."""
    if logits.shape[-1] == 1 and labels.shape == logits.shape[:-1]:
        labels = labels.unsqueeze(-1)
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit outputs of shape "
            f"{tuple(logits.shape)}: each output needs one"
        )
    outputs = logits.to(torch.promote_types(logits.dtype, torch.float32))
    is_known = ~labels.isnan() if labels.is_floating_point() else labels != IGNORE_INDEX
    return outputs, labels.to(outputs), is_known


def _check_share(targets: Tensor) -> None:
    # On an accelerator a look at the values would cost a synchronisation.
    if targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (float(value) for value in torch.aminmax(targets))
    if low < 0 or high > 1:
        raise ValueError(
            f"label {low if low < 0 else high:g} is outside [0, 1]; elements without a target are "
            "NaN"
        )
