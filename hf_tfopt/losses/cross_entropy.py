"""Cross-entropy as a sum and a count, from logits or straight from the hidden states."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_tfopt.losses.labels import check_labels, labelled
from hf_tfopt.losses.linear_head import CHUNK_BYTES, BlockLoss, linear_loss
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum


@dataclass(frozen=True)
class CrossEntropyForm:
    """What is added to the plain cross-entropy, checked; all off by default.

    Args:
        label_smoothing: ε in [0, 1): the target is (1 - ε) one-hot + ε / C.
        z_loss: factor of `logsumexp(logits)²`, at least 0.
        focal_gamma: γ of the factor (1 - p)^γ, at least 0; not with label_smoothing.

    Raises:
        ValueError: a value outside its range, or γ beside ε.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    focal_gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        for name in ("z_loss", "focal_gamma"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be at least 0")
        if self.focal_gamma and self.label_smoothing:
            raise ValueError(
                f"focal_gamma {self.focal_gamma} and label_smoothing {self.label_smoothing}: the "
                "focal factor is that of one right class; leave one of the two out"
            )


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> LossSum:
    """Cross-entropy summed over the labelled positions, computed in fp32 or wider.

    Equals `F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum",
    weight=class_weights, label_smoothing=label_smoothing, ignore_index=ignore_index)`, but only
    labelled rows are read. The options add, for a row z with label y and p = softmax(z):

    - z_loss: `z_loss * logsumexp(z)²`, times the label's class weight;
    - focal_gamma: the factor `(1 - p[y])^γ` of its cross-entropy.

    Args:
        logits: [..., C], unnormalised.
        labels: [...], class numbers in [0, C) or `ignore_index`.
        label_smoothing: ε in [0, 1): the target is (1 - ε) one-hot + ε / C.
        class_weights: [C]; the count is then the sum of the labels' weights, as torch's mean has.
        z_loss: at least 0; 1e-4 in PaLM.
        focal_gamma: at least 0; 2 in the paper; not with label_smoothing.
        ignore_index: the label of positions without a target.

    Raises:
        ValueError: shapes that do not match, a label outside [0, C), an option out of its range.

    Paper: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7 (ε / C form);
    Chowdhery et al. 2022, "PaLM", section 5 (z-loss); Lin et al. 2017, "Focal Loss", equation 4.
    """
    form = CrossEntropyForm(label_smoothing, z_loss, focal_gamma)
    rows, targets = labelled(logits, labels, ignore_index)
    check_labels(targets, logits.shape[-1], ignore_index)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    weights = None if class_weights is None else class_weights.to(rows)
    if not (form.focal_gamma or form.z_loss):
        total = F.cross_entropy(
            rows, targets, weights, reduction="sum", label_smoothing=label_smoothing
        )
    else:
        each = F.cross_entropy(
            rows, targets, weights, reduction="none", label_smoothing=label_smoothing
        )
        log_z = torch.logsumexp(rows, dim=-1)
        if form.focal_gamma:
            chosen = rows.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
            each = each * focal_factor(-torch.expm1(chosen), form.focal_gamma)
        of_label = 1.0 if weights is None else weights[targets]
        total = (each + form.z_loss * of_label * log_z.square()).sum()
    return LossSum(total, count_of(targets, weights))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    class_weights: Tensor | None = None,
    z_loss: float = 0.0,
    focal_gamma: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossSum:
    """Cross-entropy of a linear head, summed over the labelled positions, without keeping logits.

    Equals `cross_entropy(cap(logit_scale * (hidden @ weight.T) + bias), labels, label_smoothing,
    ...)` with `cap(z) = softcap * tanh(z / softcap)`. Logits exist for one chunk of rows at a time,
    and the gradients are formed in the forward pass, so that the peak is one chunk and the gradient
    of the weight (`losses.linear_head`). Cannot be differentiated twice.

    Args:
        hidden: [..., H].
        weight: [V, H].
        labels: [...], in [0, V) or `ignore_index`.
        bias: [V], or none.
        label_smoothing: ε in [0, 1), the ε / V form.
        class_weights: [V], as in `cross_entropy`.
        z_loss: as in `cross_entropy`.
        focal_gamma: as in `cross_entropy`.
        logit_scale: factor of the product, before the bias.
        softcap: largest absolute logit, approached by tanh (Gemma 2), or none.
        ignore_index: the label of positions without a target; they cost nothing.
        chunk_bytes: size of the logits held at once.

    Raises:
        ValueError: shapes that do not match, a label outside [0, V), an option out of its range.

    Paper: none; the idea is in Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language
    Models". Differs: chunks of rows, gradients in the forward pass, plain PyTorch.
    """
    form = CrossEntropyForm(label_smoothing, z_loss, focal_gamma)
    rows, targets = labelled(hidden, labels, ignore_index)
    check_labels(targets, weight.shape[0], ignore_index)
    rule = CrossEntropyRows(targets, form, class_weights)
    total, _ = linear_loss(
        rows, weight, bias, rule, logit_scale=logit_scale, softcap=softcap, chunk_bytes=chunk_bytes
    )
    return LossSum(total, count_of(targets, class_weights))


def count_of(targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The number of labels [N], or the sum of their classes' weights, as a scalar.

    Raises:
        ValueError: a label without a weight.
    """
    if class_weights is not None:
        check_labels(targets, class_weights.numel(), IGNORE_INDEX)
        return class_weights.to(targets.device)[targets].sum()
    return torch.tensor(targets.numel(), device=targets.device)


class CrossEntropyRows:
    """Cross-entropy and its slope, by hand: each row is `a * softmax - b * one_hot - u`."""

    weights = (1.0,)

    def __init__(self, targets: Tensor, form: CrossEntropyForm, class_weights: Tensor | None):
        self.targets = targets
        self.form = form
        self.class_weights = class_weights

    def chunk(self, rows: slice) -> BlockLoss:
        """Blocks of these rows against their targets."""
        targets = self.targets[rows].unsqueeze(-1)
        return lambda logits, block: self._block(logits, targets[block])

    def _block(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        form = self.form
        smoothing, uniform = form.label_smoothing, form.label_smoothing / logits.shape[-1]
        slope = torch.log_softmax(logits, dim=-1)
        log_p = slope.gather(-1, target)
        if not (self.class_weights is not None or form.z_loss or form.focal_gamma):
            loss = -(1 - smoothing) * log_p.sum()
            if uniform:
                loss = loss - uniform * slope.sum()
            slope.exp_()
            slope.scatter_add_(-1, target, slope.new_full(target.shape, smoothing - 1))
            return loss.reshape(1), slope.sub_(uniform) if uniform else slope
        classes = logits.new_ones(()) if self.class_weights is None else self.class_weights
        classes = classes.to(logits).expand(logits.shape[-1])
        own = classes[target]
        each = -(1 - smoothing) * own * log_p
        of_softmax = of_label = (1 - smoothing) * own
        if uniform:
            each = each - uniform * (slope @ classes).unsqueeze(-1)
            of_softmax = of_softmax + uniform * classes.sum()
        if form.focal_gamma:
            each, of_label = _focal(own, log_p, form.focal_gamma)
            of_softmax = of_label
        if form.z_loss:
            log_z = logits.gather(-1, target) - log_p
            each = each + form.z_loss * own * log_z.square()
            of_softmax = of_softmax + 2 * form.z_loss * own * log_z
        slope.exp_().mul_(of_softmax)
        slope.scatter_add_(-1, target, -of_label)
        return each.sum().reshape(1), slope.sub_(uniform * classes) if uniform else slope


def focal_factor(rest: Tensor, gamma: float) -> Tensor:
    """`rest^γ`, and 0 with no gradient where nothing is left (γ < 1 would have an infinite one)."""
    is_left = rest > 0
    return torch.where(is_left, torch.where(is_left, rest, 1).pow(gamma), 0)


def _focal(weight: Tensor, log_p: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`-weight (1 - p)^γ log p`, and minus its derivative by log p; 0 where p is 1."""
    rest = (-torch.expm1(log_p)).clamp(min=0)
    factor = rest.pow(gamma)
    # γ (1 - p)^(γ - 1) p log p goes to 0 with 1 - p, as log p does, for every γ > 0
    inner = gamma * factor / rest.clamp(min=torch.finfo(rest.dtype).tiny) * log_p.exp() * log_p
    return -weight * factor * log_p, weight * (factor - inner)
