"""Losses of a linear head, in chunks: hidden states in, sums out, and the logits never all exist.

The gradients are formed in the forward pass, chunk by chunk, so that the peak is one chunk and the
gradient of the weight. What is summed is a `RowRule`'s: cross-entropy, a divergence from a teacher.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at once: enough rows to keep a GEMM busy, and little beside the gradient of a
# 30k x 256 head (31 MiB).
CHUNK_BYTES = 16 * 2**20
# Softmax and its slope are taken in blocks that stay in a core's second-level cache.
BLOCK_ELEMENTS = 2**19

# (logits [n, V] in fp32 or wider, to be overwritten at will; which rows of the chunk they are)
# -> (the K terms of these rows, summed, [K]; d(their weighted sum) / d(logits) [n, V])
BlockLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class RowRule(Protocol):
    """What one row of logits costs, in K terms."""

    weights: tuple[float, ...]  # of the K terms in the sum that is differentiated

    def chunk(self, rows: slice) -> BlockLoss:
        """The loss of blocks of these rows; called once a chunk (a teacher's logits are made)."""
        ...


def linear_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rule: RowRule,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """The rule's weighted sum over all rows, differentiable, and its K terms apart, for logs.

    The logits are `cap(logit_scale * (hidden @ weight.T) + bias)`, with
    `cap(z) = softcap * tanh(z / softcap)`. Under autocast the products run in the autocast type;
    what the rule sees, sums and accumulated gradients are fp32 (fp64 for fp64 inputs). Cannot be
    differentiated twice.

    Args:
        hidden: [N, H].
        weight: [V, H].
        bias: [V], or none.
        rule: the loss of a row of logits, and its slope.
        logit_scale: factor of the product, before the bias.
        softcap: largest absolute logit, approached by tanh (Gemma 2), or none.
        chunk_bytes: size of the logits held at once.

    Raises:
        ValueError: widths that do not match.
    """
    if hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"hidden states of width {hidden.shape[-1]} do not fit a weight of shape "
            f"{tuple(weight.shape)}"
        )
    found: Any = _LinearLoss.apply(hidden, weight, bias, rule, logit_scale, softcap, chunk_bytes)
    return found


class _LinearLoss(torch.autograd.Function):
    """The sum over rows, with d(sum)/d(hidden, weight, bias) made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rule: RowRule,
        logit_scale: float,
        softcap: float | None,
        chunk_bytes: int,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        compute = compute_type(hidden)
        wide = torch.promote_types(compute, torch.float32)
        shapes = (hidden, weight, bias)
        gradients = [
            torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
            for need, tensor in zip(ctx.needs_input_grad[:3], shapes, strict=True)
        ]
        terms = [hidden.new_zeros(len(rule.weights), dtype=wide)]
        num_rows = max(1, chunk_bytes // (weight.shape[0] * compute.itemsize))
        wide_bias = None if bias is None else bias.to(wide)
        with torch.autocast(device, enabled=False):
            head = weight.to(compute)
            for start in range(0, hidden.shape[0], num_rows):
                part = slice(start, min(start + num_rows, hidden.shape[0]))
                states = hidden[part].to(compute)
                logits = states @ head.t()
                if logit_scale != 1.0:
                    logits.mul_(logit_scale)
                terms.append(_slope_(logits, rule.chunk(part), wide_bias, softcap, gradients[2]))
                if logit_scale != 1.0:
                    logits.mul_(logit_scale)
                _accumulate(gradients, part, logits, states, head)
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in shapes]
        parts = torch.stack(terms).sum(0)
        ctx.mark_non_differentiable(parts)
        return (parts * parts.new_tensor(rule.weights)).sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        scaled = [
            None if gradient is None else (gradient * grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)


def compute_type(hidden: Tensor) -> torch.dtype:
    """The type of the head's products: autocast's where it is on, else that of the states."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _slope_(
    products: Tensor,
    block_loss: BlockLoss,
    bias: Tensor | None,
    softcap: float | None,
    of_bias: Tensor | None,
) -> Tensor:
    """The chunk's terms [K]; `products` becomes d(sum)/d(products) in place, in blocks, in fp32."""
    num_rows = max(1, BLOCK_ELEMENTS // products.shape[-1])
    wide = torch.promote_types(products.dtype, torch.float32)
    terms: list[Tensor] = []
    for start in range(0, products.shape[0], num_rows):
        rows = slice(start, min(start + num_rows, products.shape[0]))
        logits = products[rows].to(wide)
        if bias is not None:
            logits.add_(bias)
        if softcap is None:
            term, slope = block_loss(logits, rows)
        else:
            bent = logits.div_(softcap).tanh_()
            term, slope = block_loss(bent * softcap, rows)
            slope = slope.mul_(1 - bent.square_())
        terms.append(term)
        products[rows] = slope
        if of_bias is not None:
            of_bias.addmv_(slope.t(), slope.new_ones(slope.shape[0]))  # on a CPU faster than sum(0)
    return torch.stack(terms).sum(0)


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
