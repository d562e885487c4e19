"""Pure functions of the number of updates made so far: how a learning rate falls from 1.

Each builder returns a `Schedule`. With p = min(step / num_steps, 1), past their end all hold.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def _progress(step: int, num_steps: int) -> float:
    return min(step / num_steps, 1.0) if num_steps > 0 else 1.0


def constant() -> Schedule:
    """1 at every step."""
    return lambda step: 1.0


def linear(num_steps: int) -> Schedule:
    """1 - p: from 1 to 0 in `num_steps` updates."""
    return lambda step: 1.0 - _progress(step, num_steps)


def cosine(num_steps: int) -> Schedule:
    """(1 + cos πp) / 2: from 1 to 0 in `num_steps` updates.

    Paper: Loshchilov and Hutter 2017, SGDR, https://arxiv.org/abs/1608.03983, equation 5.
    """
    return lambda step: (1.0 + math.cos(math.pi * _progress(step, num_steps))) / 2.0


def polynomial(num_steps: int, power: float) -> Schedule:
    """(1 - p)^power: from 1 to 0 in `num_steps` updates."""
    return lambda step: (1.0 - _progress(step, num_steps)) ** power


def one_minus_sqrt(num_steps: int) -> Schedule:
    """1 - √p: from 1 to 0 in `num_steps` updates, fast at first.

    Paper: Hägele et al. 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training
        Durations, https://arxiv.org/abs/2405.18392, section 3.
    """
    return lambda step: 1.0 - math.sqrt(_progress(step, num_steps))


def exponential(num_steps: int, end: float) -> Schedule:
    """end^p: from 1 to `end`, above 0, in `num_steps` updates, by the same factor each."""
    return lambda step: end ** _progress(step, num_steps)


def inverse_sqrt(timescale: float) -> Schedule:
    """√(t / (t + step)): 1 at first, half of it after 3t updates, and never 0."""
    return lambda step: math.sqrt(timescale / (timescale + step))
