"""The run of a range test: a recipe's optimizer while every group's rate rises by one factor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from hf_tfopt.lab.experiment import Experiment
from hf_tfopt.lab.lr_range import RangeReading, read_lr_range, rising_rates, should_stop
from hf_tfopt.lab.settings import at_rate
from hf_tfopt.lab.witness import check_alike
from hf_tfopt.schedules.curves import Curve
from hf_tfopt.schedules.for_trainer import ScheduleSpec

_STILL = 1e-9  # of the lowest rate: weights move by less than fp32 tells


@dataclass(frozen=True)
class Rising(ScheduleSpec):
    """From the optimizer's own rates up to `ratio` times them, by the same factor every update."""

    ratio: float = 1.0

    def curve(self, num_training_steps: int) -> Curve:
        """`ratio^(n / (num_training_steps - 1))` after n updates."""
        return Curve(lambda step: self.ratio ** (step / (num_training_steps - 1)), 0)


class StopRange(TrainerCallback):
    """Keeps every loss, and ends the range test when it has seen enough.

    Args:
        num_steps: the most updates; none: those of the run.
    """

    def __init__(self, num_steps: int | None = None):
        self.num_steps = num_steps
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One loss more."""
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            is_last = len(self.losses) == self.num_steps
            control.should_training_stop |= is_last or should_stop(self.losses)


def run_lr_range(experiment: Experiment, lowest: float, highest: float, bar: Any) -> RangeReading:
    """Train with a rising rate, and read what each loss is beside that of the first weights.

    The same batches are trained on twice, the second time with a rate that moves nothing. How far
    they differ in difficulty is most of the noise of a single loss, and `paired` takes it out.

    Args:
        experiment: its recipe says the optimizer and the number of updates.
        lowest: the first update's rate, above 0; groups of other rates keep their ratios.
        highest: the last one's.
        bar: a `tqdm`, moved by one for each update.

    Raises:
        ValueError: before training, for what cannot be; after it, if hardly a loss was finite.
    """
    num_steps = experiment.recipe.max_steps or 0
    rates = rising_rates(lowest, highest, num_steps)
    begin = at_rate(experiment.recipe, lowest)
    experiment.check({begin.optimizer: begin})
    rising = StopRange()
    experiment.train(begin, bar, Rising("constant", ratio=highest / lowest), rising)
    still = StopRange(len(rising.losses))
    experiment.train(at_rate(begin, lowest * _STILL), bar, ScheduleSpec("constant"), still)
    check_alike(experiment.witnesses)
    return read_lr_range(rates, paired(rising.losses, still.losses))


def paired(losses: Sequence[float], control: Sequence[float]) -> list[float]:
    """`losses - control + mean(control)`: what batches differ by in themselves, taken out."""
    mean = sum(control) / len(control)
    return [loss - own + mean for loss, own in zip(losses, control, strict=False)]
