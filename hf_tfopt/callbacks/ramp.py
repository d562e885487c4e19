"""A number that goes from one value to another over a part of the run."""

import math

from hf_tfopt.optimizers.checks import check_not_negative

SHAPES = ("linear", "cosine")


def ramp(share: float, first: float, last: float, start: float, end: float, shape: str) -> float:
    """`first` until `start`, `last` from `end` on.

    Between, with t = (share - start) / (end - start): first + (last - first) · t, or of a cosine
    first + (last - first) · (1 - cos(π t)) / 2.

    Args:
        share: of the run, in [0, 1].
        first: the number at first.
        last: the number in the end.
        start: the share of the run at which the change begins.
        end: at which it is complete.
        shape: one of `SHAPES`.
    """
    if share >= end:
        return last
    if share <= start:
        return first
    part = (share - start) / (end - start)
    part = part if shape == "linear" else (1 - math.cos(math.pi * part)) / 2
    return first + (last - first) * part


def check_ramp(start: float, end: float) -> None:
    """Raise ValueError unless the change begins and ends within the run."""
    for name, value in {"start": start, "end": end}.items():
        check_not_negative(name, value)
    if not start <= end <= 1:
        raise ValueError(
            f"start={start} and end={end} are shares of the run: 0 <= start <= end <= 1"
        )
