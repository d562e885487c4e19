"""The losses of the steps since the last log: of good ones, and that there were others."""

import math
from dataclasses import dataclass, field
from typing import Any


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
