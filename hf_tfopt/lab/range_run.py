"""The run of a range test: a recipe's optimizer while every group's rate rises by one factor."""

from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from hf_tfopt.lab.experiment import Experiment
from hf_tfopt.lab.lr_range import RangeReading, read_lr_range, rising_rates, should_stop
from hf_tfopt.lab.settings import at_rate
from hf_tfopt.schedules.curves import Curve
from hf_tfopt.schedules.for_trainer import ScheduleSpec


@dataclass(frozen=True)
class Rising(ScheduleSpec):
    """From the optimizer's own rates up to `ratio` times them, by the same factor every update."""

    ratio: float = 1.0

    def curve(self, num_training_steps: int) -> Curve:
        """`ratio^(n / (num_training_steps - 1))` after n updates."""
        return Curve(lambda step: self.ratio ** (step / (num_training_steps - 1)), 0)


class StopRange(TrainerCallback):
    """Keeps every loss, and ends the range test when it has seen enough."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One loss more."""
        if "loss" in (logs or {}):
            self.losses.append(float(logs["loss"]))
            control.should_training_stop |= should_stop(self.losses)


def run_lr_range(experiment: Experiment, lowest: float, highest: float, bar: Any) -> RangeReading:
    """Train once, the rate rising, and read the losses.

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
    kept = StopRange()
    experiment.train(begin, bar, Rising("constant", ratio=highest / lowest), kept)
    return read_lr_range(rates, kept.losses)
