"""The only place that divides: every loss is a sum and a count until the whole batch is known.

A batch of 8 examples, eight batches of 1, or two processes with 4 each give the same loss only if
each piece contributes its sum, and one division by the count over all pieces follows.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

IGNORE_INDEX = -100


class LossSum(NamedTuple):
    """A loss before its division: `sum` over `count` items, both scalars on the model's device."""

    sum: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  # hides tuple.count


Terms = Mapping[str, LossSum]


def divide(total: Tensor, count: Tensor | int) -> Tensor:
    """`total / count`, and 0 (not NaN) where nothing was counted.

    Args:
        total: sum of the loss over the items of this piece of the batch, a scalar.
        count: number of items in the *whole* batch, or the sum of their weights: over all
            accumulated pieces of all processes.
    """
    items = torch.as_tensor(count, device=total.device)
    is_any = items > 0  # labels of weight 0 count for nothing, but smoothing has a sum for them
    return torch.where(is_any, total / torch.where(is_any, items, 1), 0)


def combine(
    terms: Terms,
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


class TermTotals:
    """Named loss sums of many batches, added up where they are and divided when asked for."""

    def __init__(self) -> None:
        self._totals: dict[str, LossSum] = {}

    def add(self, terms: Terms) -> None:
        """Take in one batch's terms, without their graph and without waiting for the device."""
        for name, term in terms.items():
            piece = LossSum(term.sum.detach(), term.count.detach())
            known = [self._totals[name]] if name in self._totals else []
            self._totals[name] = add([*known, piece])

    def means(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Each term's mean; NaN where nothing was counted. Empties the totals.

        Args:
            total: sums a tensor over all processes.
        """
        names, self._totals, totals = list(self._totals), {}, self._totals
        if not names:
            return {}
        sums = total(torch.stack([part for name in names for part in totals[name]])).view(-1, 2)
        means = torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], math.nan)
        return dict(zip(names, means.tolist(), strict=True))


def present(means: Mapping[str, float]) -> dict[str, float]:
    """The means of terms of which anything was counted: those that are not NaN."""
    return {name: mean for name, mean in means.items() if not math.isnan(mean)}


def summed(means: Mapping[str, float]) -> float:
    """The sum of the means that are there; NaN if none is."""
    known = present(means)
    return sum(known.values()) if known else math.nan


def has_target(labels: Any) -> bool:
    """Whether any element of labels is a target: whole and not `IGNORE_INDEX`, or not NaN."""
    if not isinstance(labels, Tensor):
        return False
    return bool((~labels.isnan() if labels.is_floating_point() else labels != IGNORE_INDEX).any())


def unlabelled(
    batch: Mapping[str, Any], targets: Iterable[str], num_kept: int, num_examples: int
) -> dict[str, Any]:
    """The batch with targets in the first `num_kept` of its `num_examples` examples only.

    Whole numbers become `IGNORE_INDEX`, fractions NaN, which every loss here takes for no target.
    """
    marked = dict(batch)
    for name in targets:
        if name not in batch:
            continue
        labels: Tensor = batch[name].clone()
        nothing = math.nan if labels.is_floating_point() else IGNORE_INDEX
        if labels.shape[0] < num_examples and "cu_seq_lens_q" in batch:  # end to end in one row
            labels[:, int(batch["cu_seq_lens_q"][num_kept]) :] = nothing
        else:
            labels[num_kept:] = nothing
        marked[name] = labels
    return marked


def perplexity(nll: float) -> float:
    """`exp(nll)` for a mean negative log-likelihood in nats; infinite where a float overflows."""
    return math.inf if nll >= math.log(float("1e308")) else math.exp(nll)
