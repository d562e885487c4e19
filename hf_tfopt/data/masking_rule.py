"""The settings of masked language modelling: rates, units, spans, and what stands for a target."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.keyed_bits import FATES, LANE, Flags, Integers, to_lane
from hf_tfopt.registry import check_name

UNITS = ("token", "word", "span")
SPAN_SUCCESS, MAX_SPAN = 0.2, 10  # Joshi et al. 2020, section 3.1


def linear_rate(start: float, end: float, num_epochs: int) -> Callable[[int], float]:
    """A masking rate that goes from `start` in epoch 0 to `end` in epoch `num_epochs - 1`.

    `rate(epoch) = start + (end - start) * min(epoch / (num_epochs - 1), 1)`

    Args:
        start: the rate of epoch 0, in (0, 1).
        end: the rate of the last epoch and all later ones, in (0, 1).
        num_epochs: at least 2.
    """
    if num_epochs < 2:
        raise ValueError(f"num_epochs is {num_epochs}: a rate that changes needs at least 2")
    check_rate(start)
    check_rate(end)
    return partial(_linear, start, end, num_epochs)


def _linear(start: float, end: float, num_epochs: int, epoch: int) -> float:
    return start + (end - start) * min(epoch / (num_epochs - 1), 1.0)


def check_rate(probability: Any) -> float:
    """Return `probability` as a float; raises ValueError unless it lies in (0, 1)."""
    if not (isinstance(probability, (int, float)) and 0.0 < probability < 1.0):
        raise ValueError(
            f"probability is {probability!r}: allowed is a number in (0, 1), usually 0.15 to 0.4, "
            "or a function of the epoch that returns one"
        )
    return float(probability)


class SpanTables(NamedTuple):
    """The span process of one masking rate, as tables over one 16-bit lane.

    `start` of 65536 words begin a span; a span's length is `lengths[lane]`. A run's first word, if
    it begins none, has `residuals[lane]` words of an imagined earlier one left (0: in none).
    """

    start: int
    lengths: NDArray[np.uint8]
    residuals: NDArray[np.uint8]


@lru_cache(maxsize=16)
def span_tables(probability: float) -> SpanTables:
    """Tables with which every word is covered with exactly `probability`, at the edges too.

    A word starts a span with probability q; the latest start owns a word if that is still inside
    its length L. So `P(covered) = sum_k q (1-q)^k P(L > k)`, k >= 0, is solved for q; a run whose
    first word starts none begins as in the middle of a long one: `P(r words left) =
    sum_k q (1-q)^(k-1) P(L = r + k)`, k >= 1.
    """
    steps = np.arange(MAX_SPAN)
    length = SPAN_SUCCESS * (1 - SPAN_SUCCESS) ** steps
    length /= length.sum()  # P(L = k + 1)
    longer = 1 - np.concatenate([[0.0], np.cumsum(length)[:-1]])  # P(L > k)
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        covered = float((q * (1 - q) ** steps * longer).sum())
        low, high = (q, high) if covered < probability else (low, q)
    start = to_lane((low + high) / 2)
    q = start / LANE
    left = [float((q * (1 - q) ** steps[: MAX_SPAN - r] * length[r:]).sum()) for r in steps[1:]]
    return SpanTables(start, _lookup(length, 1), _lookup(np.array([1 - sum(left), *left]), 0))


def _lookup(weights: NDArray[np.float64], first: int) -> NDArray[np.uint8]:
    """The inverse distribution function on the 65536 lane values."""
    edges = np.rint(np.cumsum(weights) * LANE).astype(np.int64)
    edges[-1] = LANE
    values = np.arange(first, first + len(weights), dtype=np.uint8)
    return np.repeat(values, np.diff(edges, prepend=0))


@dataclass(frozen=True)
class MaskingRule:
    """What may be masked, in which units, and what stands in the place of a target.

    Args:
        unit: "token", "word" or "span" (of words).
        maskable: by token id, False for special tokens.
        replacements: the ids that random replacements are drawn from.
        mask_id: the id of the mask token.
        mask_fraction: the share of chosen units that become the mask token.
        random_fraction: the share that become random tokens; the rest stay as they are.
    """

    unit: str
    maskable: Flags
    replacements: Integers
    mask_id: int
    mask_fraction: float = 0.8
    random_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_name("unit", self.unit, UNITS)
        fractions = (self.mask_fraction, self.random_fraction)
        if min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
            raise ValueError(
                f"mask_fraction={self.mask_fraction} and random_fraction={self.random_fraction}: "
                "both must be at least 0 and their sum at most 1 (the rest is kept as it is)"
            )
        if not len(self.replacements):
            raise ValueError("the vocabulary has special tokens only: there is nothing to mask")

    @property
    def limits(self) -> tuple[int, int]:
        """Fates below the first become the mask token, other ones below the second a random one."""
        changed = self.mask_fraction + self.random_fraction
        return round(self.mask_fraction * FATES), round(changed * FATES)


class Targets(NamedTuple):
    """What is to be guessed: flat positions, in any order; the ids there; what the model sees."""

    positions: Integers
    labels: Integers
    inputs: Integers
