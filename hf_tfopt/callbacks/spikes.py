"""Values far above those that came before them, in a series whose noise is not known."""

import math
from collections.abc import Mapping, Sequence

from hf_tfopt.optimizers.checks import check_count, check_positive

MIN_VALUES = 100  # before that, a quantile of the top is not known
LEAST_SPREAD = 0.02  # of a series without noise: rounding alone is no event


def spike_threshold(past: Sequence[float], threshold: float = 6.0, ratio: float = 3.0) -> float:
    """The logarithm above which a value is a spike, from the logarithms before it.

    The larger of two, m and MAD being the median of `past` and of the distances to it, q(p) its
    quantiles:

        m + max(threshold · 1.4826 · MAD, log ratio)   a robust z-score
        q(0.99) + 3 · (q(0.99) - q(0.9))             its own tail, continued

    The first alone would call the tail of heavy-tailed noise an event again and again: losses of
    small batches have such tails. The second is at 5.5 standard deviations of the logarithms where
    they are normal. Noise whose tail is a power of 3 or less is called a spike all the same, about
    once in 10,000 steps.

    Args:
        past: the logarithms of the values so far, in any order; infinity while there are fewer than
            100.
        threshold: of the z-score, in standard deviations.
        ratio: to the median of the values; less is no spike, however quiet the series.

    Paper: none; the median and MAD are those of Hampel 1974.
    """
    if len(past) < MIN_VALUES:
        return math.inf
    ranked = sorted(past)
    center = _quantile(ranked, 0.5)
    spread = 1.4826 * _quantile(sorted(abs(value - center) for value in ranked), 0.5)
    top, upper = _quantile(ranked, 0.99), _quantile(ranked, 0.9)
    by_score = center + max(threshold * max(spread, LEAST_SPREAD), math.log(ratio))
    return max(by_score, top + 3 * (top - upper))


def _quantile(ranked: Sequence[float], share: float) -> float:
    return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


def is_spike(
    value: float, past: Sequence[float], threshold: float = 6.0, ratio: float = 3.0
) -> bool:
    """Whether a value is a spike after those whose logarithms are `past`.

    Never for what has no logarithm: 0 or less, as some losses are.
    """
    return value > 0 and math.log(value) > spike_threshold(past, threshold, ratio)


def spikes_in(
    values: Mapping[str, float],
    past: Mapping[str, Sequence[float]],
    threshold: float = 6.0,
    ratio: float = 3.0,
) -> list[str]:
    """The names of the values that are spikes after those of the same name in `past`."""
    return [n for n, value in values.items() if is_spike(value, past[n], threshold, ratio)]


def check_limits(threshold: float, ratio: float, window: int) -> None:
    """Raise ValueError for numbers that no spike can be judged by; see `spike_threshold`."""
    if threshold != math.inf:
        check_positive("threshold", threshold)
    if not 1 < ratio < math.inf:
        raise ValueError(f"ratio must be above 1, got {ratio!r}")
    check_count("window", window)


def remember(value: float, past: list[float], window: int) -> None:
    """Add the logarithm of a value, in place, and forget what is older than the window."""
    if 0 < value < math.inf:
        past.append(round(math.log(value), 5))  # five digits: a checkpoint holds them as text
        del past[:-window]
