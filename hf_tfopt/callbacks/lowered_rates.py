"""Lower the learning rate of a running schedule, for good."""

from typing import Any

import torch
from torch import Tensor

# The rates that the schedulers of torch and the host compute with.
OF_GROUPS = ("initial_lr", "max_lr", "min_lr", "lr")
OF_SCHEDULERS = ("base_lrs", "max_lrs", "min_lrs", "_init_lrs", "_last_lr", "eta_min")


@torch.no_grad()
def scale_rates(optimizer: Any, scheduler: Any, factor: float) -> None:
    """Multiply the learning rate of every group by a factor, now and in all steps that follow.

    Schedulers compute each rate from others (`base_lrs[i] * multiplier(step)`), or go on from the
    one they find: all of them are scaled, so that what follows is the schedule times the factor.
    They are all in the checkpoints. A scheduler of the user's own that computes with other numbers
    goes on as before.

    Args:
        optimizer: torch's or accelerate's.
        scheduler: of its rates, torch's or accelerate's; None if there is none.
        factor: above 0.
    """
    for group in optimizer.param_groups:
        for key in OF_GROUPS:
            if group.get(key) is None:
                continue
            if key == "lr" and isinstance(group[key], Tensor):
                group[key].mul_(factor)  # a compiled optimizer knows it by its memory
            else:
                group[key] = group[key] * factor
    for part in _parts(getattr(scheduler, "scheduler", scheduler)):
        for name in OF_SCHEDULERS:
            if hasattr(part, name):
                setattr(part, name, _scaled(getattr(part, name), factor))


def _parts(scheduler: Any) -> list[Any]:
    """A scheduler and those that it is made of."""
    inner: list[Any] = getattr(scheduler, "_schedulers", [])
    return [scheduler, *(part for one in inner for part in _parts(one))]


def _scaled(rates: Any, factor: float) -> Any:
    if isinstance(rates, list):
        return [rate * factor for rate in rates]
    return rates * factor
