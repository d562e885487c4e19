"""Averages of a list of weights, written down as their definitions, in fp64."""

from collections.abc import Sequence

from torch import Tensor

Weights = Sequence[Tensor]


def exponential_average(weights: Sequence[Weights], decay: float) -> list[Tensor]:
    """The first, then d · average + (1 - d) · weights with d = min(decay, (1 + n) / (10 + n))."""
    average = [tensor.double() for tensor in weights[0]]
    for number, tensors in enumerate(weights[1:], start=1):
        d = min(decay, (1 + number) / (10 + number))
        average = [d * a + (1 - d) * w.double() for a, w in zip(average, tensors, strict=True)]
    return average


def tail_average(weights: Sequence[Weights], num_before: int) -> list[Tensor]:
    """The mean of all but the first few."""
    tail = weights[num_before:]
    return [sum(t.double() for t in tensors) / len(tail) for tensors in zip(*tail, strict=True)]


def window_average(weights: Sequence[Weights], num: int) -> list[Tensor]:
    """The mean of the last few."""
    return tail_average(weights[-num:], 0)
