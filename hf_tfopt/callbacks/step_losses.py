"""The losses of the micro-batches, which the host's events do not tell."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def pass_losses_through(trainer: Any, seen: Callable[[Tensor], Tensor]) -> None:
    """Let a function see the loss of every micro-batch after its backward pass, and change it.

    What it returns is added up for the host's log; what is differentiated was that before.
    """
    before = vars(trainer).get("training_step")

    def training_step(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        # the class is asked each time: `attach` may have given the trainer another
        step = before or type(trainer).training_step.__get__(trainer)
        return seen(step(model, inputs, *rest, **options))

    trainer.training_step = training_step


@dataclass
class SinceLog:
    """The losses of the steps since the last log.

    Args:
        good: of the good steps.
        has_bad_step: whether there were others.
        has_bad_loss: whether one of those had a loss that is not finite.
    """

    good: list[float] = field(default_factory=list[float])
    has_bad_step: bool = False
    has_bad_loss: bool = False

    def scalars(self) -> dict[str, float]:
        """`good_loss`, if it is not what is logged anyway."""
        if not (self.has_bad_step and self.good):
            return {}
        return {"good_loss": math.fsum(self.good) / len(self.good)}

    def mark(self, *logs: dict[str, Any]) -> None:
        """Write NaN for a loss that the host has replaced."""
        for log in logs:
            if self.has_bad_loss:
                log["loss"] = math.nan
