"""Measures of tensors: moments that can be added up, and what attention looks at."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Moments(NamedTuple):
    """Of a number of values: their mean, the sums of (x - mean)^2, ^3 and ^4, max |x|, and zeros.

    The standard deviation is that of the values themselves (divided by their count), the kurtosis
    E[(x - mean)^4] / E[(x - mean)^2]^2: 3 for a normal distribution.
    """

    number: float
    mean: float
    squares: float
    cubes: float
    fourths: float
    absmax: float
    num_zeros: float

    @property
    def std(self) -> float:
        """The standard deviation."""
        return math.sqrt(self.squares / self.number)

    @property
    def kurtosis(self) -> float:
        """How heavy the tails are; NaN where all values are equal."""
        squares = self.squares * self.squares
        return self.number * self.fourths / squares if squares else math.nan

    @property
    def zeros(self) -> float:
        """The share of values that are 0."""
        return self.num_zeros / self.number


def moments(values: Tensor, is_counted: Tensor | None = None) -> Tensor:
    """The numbers of `Moments` as one vector [7] in fp32, on the values' device; nothing is read.

    Equals, without a synchronisation on an accelerator,

        x = values[is_counted].flatten(); d = x - x.mean()
        len(x), x.mean(), (d**2).sum(), (d**3).sum(), (d**4).sum(), x.abs().max(), (x == 0).sum()

    Args:
        values: [..., size].
        is_counted: bool [...]; None: all are.
    """
    rows = values.detach().float().reshape(-1, values.shape[-1])
    left_out = None if is_counted is None else ~is_counted.reshape(-1, 1)
    if left_out is None:
        count = rows.new_full((), rows.numel())
    else:
        rows = rows.masked_fill(left_out, 0)
        count = (left_out.numel() - left_out.sum()).float() * rows.shape[1]
    mean = rows.sum() / count
    deviations = rows - mean
    if left_out is not None:
        deviations = deviations.masked_fill_(left_out, 0)
    deviations, squares = deviations.flatten(), deviations.square().flatten()
    low, high = rows.aminmax()
    found = (
        count,
        mean,
        squares.sum(),
        squares.dot(deviations),
        squares.dot(squares),
        torch.maximum(-low, high),
        count - rows.count_nonzero(),
    )
    return torch.stack(found)


def joined(one: Moments, other: Moments) -> Moments:
    """The moments of two sets of values together.

    Paper: Pébay 2008, Formulas for Robust, One-Pass Parallel Computation of Covariances and
    Arbitrary-Order Statistical Moments, https://doi.org/10.2172/1028931, equations 2.1 and
    following. No difference.
    """
    if not one.number or not other.number:
        return one if one.number else other
    a, b = one.number, other.number
    count, apart = a + b, other.mean - one.mean
    step = apart / count
    squares = one.squares + other.squares + apart * step * a * b
    cubes = one.cubes + other.cubes + apart * step**2 * a * b * (a - b)
    cubes += 3 * step * (a * other.squares - b * one.squares)
    fourths = one.fourths + other.fourths + apart * step**3 * a * b * (a * a - a * b + b * b)
    fourths += 6 * step**2 * (a * a * other.squares + b * b * one.squares)
    fourths += 4 * step * (a * other.cubes - b * one.cubes)
    absmax = math.nan if one.absmax != one.absmax else max(other.absmax, one.absmax)
    mean = one.mean + b * step
    return Moments(count, mean, squares, cubes, fourths, absmax, one.num_zeros + other.num_zeros)


def attention_logits(
    query: Tensor, key: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """What `scaled_dot_product_attention` takes the softmax of: fp32, -inf where a key is unseen.

        query @ key.mT * scale + mask

    Args:
        query: [batch, heads, queries, size].
        key: [batch, heads, keys, size], or of fewer heads, each for a group of the queries'.
        mask: bool (True: seen) or added; it broadcasts to the result.
        scale: None: 1 / sqrt(size).

    Returns:
        [batch, heads, queries, keys]
    """
    groups = query.shape[1] // key.shape[1]
    grouped = query.detach().float().unflatten(1, (key.shape[1], groups))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits: Tensor = (grouped * factor @ key.detach().float().unsqueeze(2).mT).flatten(1, 2)
    if mask is not None and mask.dtype == torch.bool:
        return logits.masked_fill_(~mask, -math.inf)
    if mask is not None:
        return unseen_as_infinite(logits.add_(mask), mask.dtype)
    return logits


def unseen_as_infinite(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits in fp32, -inf where a mask has put them near the lowest number of its dtype."""
    return logits.float().masked_fill(logits < torch.finfo(dtype).min / 2, -math.inf)


class AttentionSums(NamedTuple):
    """By head: sums of entropy as a share and of the largest weight, their number, largest logit.

    Each is [heads].
    """

    entropy: Tensor
    maximum: Tensor
    number: Tensor
    largest: Tensor

    def __or__(self, other: "AttentionSums") -> "AttentionSums":
        """Those of the queries of both."""
        return AttentionSums(
            self.entropy + other.entropy,
            self.maximum + other.maximum,
            self.number + other.number,
            torch.maximum(self.largest, other.largest),
        )


def attention_sums(logits: Tensor, is_counted: Tensor | None = None) -> AttentionSums:
    """The entropy and the largest weight of attention, summed over the queries.

    Of a query with weights p = softmax(logits) over the n keys that it sees,

        entropy = -sum(p * log(p)) / log(n)

    is 0 where it looks at one key alone, and 1 where at all alike. Queries that see one key only
    have nothing to choose, and do not count in the sums.

    Args:
        logits: [batch, heads, queries, keys], -inf where a key is unseen.
        is_counted: bool [batch, queries]; None: all are.

    Paper: Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy
    Collapse, https://arxiv.org/abs/2303.06296, section 3: the mean entropy over queries and heads.
    Differs: as a share of the largest possible, which does not depend on the length.
    """
    num_seen = (logits != -math.inf).sum(-1)
    counts, tops = num_seen > 1, logits.amax(-1)
    if is_counted is not None:
        counts = counts & is_counted.unsqueeze(1)
        tops = tops.masked_fill(~is_counted.unsqueeze(1), -math.inf)
    weights = F.softmax(logits, dim=-1)
    entropy = torch.special.entr(weights).sum(-1) / num_seen.clamp(min=2).log()
    return AttentionSums(
        entropy.masked_fill(~counts, 0).sum((0, 2)),
        weights.amax(-1).masked_fill(~counts, 0).sum((0, 2)),
        counts.sum((0, 2)),
        tops.amax((0, 2)),
    )
