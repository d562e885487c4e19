"""The only place that divides: every loss is a sum and a count until the whole batch is known.

A batch of 8 examples, eight batches of 1, or two processes with 4 each give the same loss only if
each piece contributes its sum, and one division by the count over all pieces follows.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100


class LossSum(NamedTuple):
    """A loss before its division: `sum` over `count` items, both scalars on the model's device."""

    sum: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count


def divide(total: Tensor, count: Tensor | int) -> Tensor:
    """`total / count`, and 0 (not NaN) where nothing was counted.

    Args:
        total: sum of the loss over the items of this piece of the batch, a scalar.
        count: number of items in the *whole* batch: all accumulated pieces of all processes.
    """
    return total / torch.as_tensor(count, device=total.device).clamp(min=1)


def combine(
    terms: Mapping[str, LossSum],
    counts: Mapping[str, Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """The scalar to differentiate: `sum_k weights[k] * terms[k].sum / counts[k]`.

    Args:
        terms: named loss sums of this piece of the batch.
        counts: each term's count over the whole batch; the terms' own counts if not given.
        weights: each term's factor; 1 where not given.
    """
    weights = weights or {}
    scaled = [
        weights.get(name, 1.0) * divide(term.sum, counts[name] if counts else term.count)
        for name, term in terms.items()
    ]
    return torch.stack(scaled).sum()


def add(pieces: Iterable[LossSum]) -> LossSum:
    """The sum of sums and of counts, in float64 so that long evaluations do not lose digits."""
    pieces = list(pieces)
    return LossSum(
        torch.stack([piece.sum.double() for piece in pieces]).sum(),
        torch.stack([piece.count.double() for piece in pieces]).sum(),
    )


def perplexity(nll: float) -> float:
    """`exp(nll)` for a mean negative log-likelihood in nats; infinite where a float overflows."""
    return math.exp(nll) if nll < math.log(float("1e308")) else math.inf
