"""Averages of the weights over training: exponential, of the run's tail, of the latest."""

from torch import Tensor

from hf_tfopt.callbacks.averaged_weights import copies, decay_after, move_toward
from hf_tfopt.callbacks.weight_average import WeightAverage
from hf_tfopt.optimizers.checks import check_count, check_share


class ExponentialAverage(WeightAverage):
    """Exponential moving average (EMA) of the weights, in fp32.

        average <- d · average + (1 - d) · weights,  d = min(decay, (1 + n) / (10 + n))

    with n the weights averaged before; the first average is the first weights. The share d rises,
    so that a short run does not end with its beginning. It costs one pass over the weights each
    time, a copy of them in fp32, and another during an evaluation. See `WeightAverage` for what is
    evaluated, saved and resumed.

    | name | what |
    |---|---|
    | `num_averaged` | weights in the average so far |

    Args:
        decay: what the average keeps of itself each time, in the long run; in [0, 1).
        every: steps from one averaged weight to the next.
        start: what passes before: below 1 a share of the run, else steps.

    Raises:
        ValueError: see `WeightAverage`.

    Paper: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging",
    https://doi.org/10.1137/0330046, in its exponential form; the rise of the decay is of
    TensorFlow's `ExponentialMovingAverage(num_updates)`, which begins with the initial weights.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, start: float = 0.0):
        super().__init__(every, start)
        check_share("decay", decay)
        self.decay = decay

    def include(self, parts: list[list[Tensor]], num_averaged: int) -> list[list[Tensor]]:
        """One part, moved toward the weights."""
        if not parts:
            return [copies(self._weights)]
        decay = decay_after(num_averaged, self.decay)
        move_toward(parts[0], self._weights, 1 - decay)
        return parts


class StochasticWeightAverage(WeightAverage):
    """Equal average of the weights in the last part of the run (SWA), in fp32.

        average <- (n · average + weights) / (n + 1)

    with n the weights averaged before. Meant for a learning rate that stays up, or cycles, while
    averages are taken; a rate that has fallen to nothing leaves nothing to average. It costs one
    pass over the weights each time, a copy of them in fp32, and another during an evaluation. See
    `WeightAverage` for what is evaluated, saved and resumed; before the first average that is the
    weights that are trained.

    | name | what |
    |---|---|
    | `num_averaged` | weights in the average so far |

    Args:
        start: what passes before: below 1 a share of the run, else steps.
        every: steps from one averaged weight to the next; the paper's are an epoch's.

    Raises:
        ValueError: see `WeightAverage`.

    Paper: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
    Generalization", https://arxiv.org/abs/1803.05407, algorithm 1. Batch normalisation is left
    alone, and the schedule is a choice of its own.
    """

    def __init__(self, start: float = 0.75, every: int = 1):
        super().__init__(every, start)

    def include(self, parts: list[list[Tensor]], num_averaged: int) -> list[list[Tensor]]:
        """One part, of which the weights get their share."""
        if not parts:
            return [copies(self._weights)]
        move_toward(parts[0], self._weights, 1 / (num_averaged + 1))
        return parts


class LatestWeightAverage(WeightAverage):
    """Equal average of the latest few of the weights collected (LAWA).

        average = mean(the last `num` weights collected, one every `every` steps)

    It follows a run that still moves, where SWA waits for its end. It costs `num` copies of the
    weights, in their own precision, in memory and beside each checkpoint, and no work but the copy;
    during an evaluation two more. See `WeightAverage` for what is evaluated, saved and resumed.

    | name | what |
    |---|---|
    | `num_averaged` | weights collected so far, of which the average has the last `num` |

    Args:
        num: weights in the average.
        every: steps from one to the next; the paper's are an epoch's.
        start: what passes before: below 1 a share of the run, else steps.

    Raises:
        ValueError: see `WeightAverage`.

    Paper: Kaddour 2022, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with
    Latest Weight Averaging", https://arxiv.org/abs/2209.14981, section 2.
    """

    def __init__(self, num: int = 5, every: int = 100, start: float = 0.0):
        super().__init__(every, start)
        check_count("num", num)
        self.num = num

    def include(self, parts: list[list[Tensor]], num_averaged: int) -> list[list[Tensor]]:
        """The last parts, and the weights."""
        newest = [weight.detach().clone() for weight in self._weights]
        return [*parts[max(0, len(parts) + 1 - self.num) :], newest]

    def copied(
        self, parts: list[list[Tensor]], known: list[list[Tensor]], is_on_cpu: bool
    ) -> list[list[Tensor]]:
        """The parts themselves: they never change."""
        return [*parts]

    def put(self, parts: list[list[Tensor]], saved: list[list[Tensor]]) -> list[list[Tensor]]:
        """The parts that were."""
        return [*saved]
