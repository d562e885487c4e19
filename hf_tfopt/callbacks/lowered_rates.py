"""Lower the learning rate of a running schedule, for good."""

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def scale_rates(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate of every group by a factor, now and in all steps that follow.

    The host's schedulers compute `base_lrs[i] * multiplier(step)` anew in each step, and torch's
    others go on from the rate they find: so both are scaled, with the `initial_lr` of the group.
    All three are in the checkpoints.

    Args:
        optimizer: torch's or accelerate's.
        scheduler: of its rates, torch's or accelerate's; None if there is none.
        factor: above 0.
    """
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr"):
            if key in group:
                group[key] = _scaled(group[key], factor)
    for part in _parts(getattr(scheduler, "scheduler", scheduler)):
        for name in ("base_lrs", "_last_lr"):
            if hasattr(part, name):
                setattr(part, name, [_scaled(rate, factor) for rate in getattr(part, name)])


def _parts(scheduler: Any) -> list[Any]:
    """A scheduler and those that it is made of."""
    inner: list[Any] = getattr(scheduler, "_schedulers", [])
    return [scheduler, *(part for one in inner for part in _parts(one))]


def _scaled(rate: Any, factor: float) -> Any:
    # a compiled optimizer's rate is a tensor, which it knows by its memory
    return rate.mul_(factor) if isinstance(rate, Tensor) else rate * factor
