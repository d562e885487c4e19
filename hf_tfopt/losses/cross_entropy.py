"""Cross-entropy as a sum and a count, from logits or straight from the hidden states."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum

# Logits held at once: enough rows to keep a GEMM busy, and little beside the gradient of a
# 30k x 256 head (31 MiB).
CHUNK_BYTES = 16 * 2**20
# Softmax and its slope are taken in blocks that stay in a core's second-level cache.
BLOCK_ELEMENTS = 2**19


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
) -> LossSum:
    """Cross-entropy summed over the labelled positions, computed in fp32 or wider.

    Equals `F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum",
    label_smoothing=label_smoothing, ignore_index=ignore_index)`, but only labelled rows are read.

    Args:
        logits: [..., C], unnormalised.
        labels: [...], class numbers in [0, C) or `ignore_index`.
        label_smoothing: ε in [0, 1): the target is (1 - ε) one-hot + ε / C.
        ignore_index: the label of positions without a target.

    Raises:
        ValueError: shapes that do not match, a label outside [0, C), ε outside [0, 1).

    Paper: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7 (ε / C form).
    """
    _check_smoothing(label_smoothing)
    rows, targets = _labelled(logits, labels, ignore_index)
    _check_range(targets, logits.shape[-1], ignore_index)
    total = F.cross_entropy(
        rows.to(torch.promote_types(rows.dtype, torch.float32)),
        targets,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return LossSum(total, _count(targets))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = IGNORE_INDEX,
    chunk_bytes: int = CHUNK_BYTES,
) -> LossSum:
    """Cross-entropy of a linear head, summed over the labelled positions, without keeping logits.

    Equals `cross_entropy(cap(logit_scale * (hidden @ weight.T) + bias), labels, label_smoothing)`
    with `cap(z) = softcap * tanh(z / softcap)`. Logits exist for one chunk of rows at a time, and
    the gradients are formed in the forward pass, so that the peak is one chunk and the gradient of
    the weight. Under autocast the products run in the autocast type; softmax, sums and the
    accumulated gradients are fp32 (fp64 for fp64 inputs). Cannot be differentiated twice.

    Args:
        hidden: [..., H].
        weight: [V, H].
        labels: [...], in [0, V) or `ignore_index`.
        bias: [V], or none.
        label_smoothing: ε in [0, 1), the ε / V form.
        logit_scale: factor of the product, before the bias.
        softcap: largest absolute logit, approached by tanh (Gemma 2), or none.
        ignore_index: the label of positions without a target; they cost nothing.
        chunk_bytes: size of the logits held at once.

    Raises:
        ValueError: shapes that do not match, a label outside [0, V), ε outside [0, 1).

    Paper: none; the idea is in Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language
    Models". Differs: chunks of rows, gradients in the forward pass, plain PyTorch.
    """
    _check_smoothing(label_smoothing)
    if hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden states of width {hidden.shape[-1]} do not fit a weight of shape "
            f"{tuple(weight.shape)}"
        )
    rows, targets = _labelled(hidden, labels, ignore_index)
    _check_range(targets, weight.shape[0], ignore_index)
    total = _LinearCrossEntropy.apply(
        rows, weight, bias, targets, label_smoothing, logit_scale, softcap, chunk_bytes
    )
    assert isinstance(total, Tensor)
    return LossSum(total, _count(targets))


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over rows, with d(sum)/d(hidden, weight, bias) made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        label_smoothing: float,
        logit_scale: float,
        softcap: float | None,
        chunk_bytes: int,
    ) -> Tensor:
        device = hidden.device.type
        compute = hidden.dtype
        if torch.is_autocast_enabled(device):
            compute = torch.get_autocast_dtype(device)
        wide = torch.promote_types(compute, torch.float32)
        shapes = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
            for need, tensor in zip(ctx.needs_input_grad[:3], shapes, strict=True)
        ]
        total = hidden.new_zeros((), dtype=wide)
        num_rows = max(1, chunk_bytes // (weight.shape[0] * compute.itemsize))
        rule = _Rule(None if bias is None else bias.to(wide), label_smoothing, softcap)
        with torch.autocast(device, enabled=False):
            head = weight.to(compute)
            for start in range(0, hidden.shape[0], num_rows):
                part = slice(start, start + num_rows)
                states = hidden[part].to(compute)
                logits = states @ head.t()
                if logit_scale != 1.0:
                    logits.mul_(logit_scale)
                total += _loss_and_slope_(logits, targets[part], rule, gradients[2])
                if logit_scale != 1.0:
                    logits.mul_(logit_scale)
                _accumulate(gradients, part, logits, states, head)
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in shapes]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = [
            None if gradient is None else (gradient * grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None)


class _Rule(NamedTuple):
    """From the product of one row to its loss."""

    bias: Tensor | None
    label_smoothing: float
    softcap: float | None


def _loss_and_slope_(
    products: Tensor, targets: Tensor, rule: _Rule, of_bias: Tensor | None
) -> Tensor:
    """The chunk's loss; `products` becomes d(loss)/d(products) in place, in blocks, in fp32."""
    num_rows = max(1, BLOCK_ELEMENTS // products.shape[-1])
    wide = torch.promote_types(products.dtype, torch.float32)
    losses: list[Tensor] = []
    for start in range(0, products.shape[0], num_rows):
        block = products[start : start + num_rows]
        logits = block.to(wide)
        if rule.bias is not None:
            logits.add_(rule.bias)
        loss, slope = _block(logits, targets[start : start + num_rows].unsqueeze(-1), rule)
        losses.append(loss)
        block.copy_(slope)
        if of_bias is not None:
            of_bias.addmv_(slope.t(), slope.new_ones(slope.shape[0]))  # on a CPU faster than sum(0)
    return torch.stack(losses).sum()


def _block(logits: Tensor, target: Tensor, rule: _Rule) -> tuple[Tensor, Tensor]:
    """Loss and slope of a few rows of logits with the bias in them."""
    if rule.softcap is not None:
        logits = logits.div_(rule.softcap).tanh_()
        slope = torch.log_softmax(logits * rule.softcap, dim=-1)
    else:
        slope = torch.log_softmax(logits, dim=-1)
    loss = -(1 - rule.label_smoothing) * slope.gather(-1, target).sum()
    uniform = rule.label_smoothing / logits.shape[-1]
    if uniform:
        loss = loss - uniform * slope.sum()
    slope.exp_()
    slope.scatter_add_(-1, target, slope.new_full(target.shape, rule.label_smoothing - 1))
    if uniform:
        slope.sub_(uniform)
    if rule.softcap is not None:
        slope.mul_(1 - logits.square_())
    return loss, slope


def _accumulate(
    gradients: list[Tensor | None], part: slice, slope: Tensor, states: Tensor, head: Tensor
) -> None:
    """Add one chunk's share to the gradients of hidden states and weight, in fp32 or wider."""
    of_hidden, of_weight, _ = gradients
    if of_hidden is not None:
        of_hidden[part] = slope @ head
    if of_weight is None:
        return
    if head.dtype == of_weight.dtype:
        of_weight.addmm_(slope.t(), states)  # accumulates in place: no [V, H] temporary
    else:
        of_weight += slope.t() @ states


def _labelled(tensor: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Rows of `tensor` [..., F] that have a label, and their labels."""
    if tensor.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {tuple(tensor.shape)}: "
            "all dimensions but the last must be the same"
        )
    targets = labels.reshape(-1)
    index = targets.ne(ignore_index).nonzero().squeeze(-1)
    rows = tensor.reshape(-1, tensor.shape[-1])
    if index.numel() == targets.numel():
        return rows, targets
    return rows.index_select(0, index), targets.index_select(0, index)


def _count(targets: Tensor) -> Tensor:
    return torch.tensor(targets.numel(), device=targets.device)


def _check_range(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    # On an accelerator a look at the values would cost a synchronisation; its gather asserts.
    if targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"label {low if low < 0 else high} is outside [0, {num_classes}); "
            f"positions without a target are labelled {ignore_index}"
        )


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 1)")
