"""Schedules by name, as the torch scheduler that a Trainer steps."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from hf_tfopt.registry import UnknownOptionError, check_name, nearest
from hf_tfopt.schedules import SCHEDULES, compose
from hf_tfopt.schedules.curves import Curve
from hf_tfopt.schedules.decays import Schedule

PLANNED = 1000  # updates of an imagined run, with which numbers are checked before there is one

Floors = float | Mapping[str, float]


@dataclass(frozen=True)
class ScheduleSpec:
    """A schedule before the number of updates is known; see `schedule`."""

    name: str
    warmup_steps: float = 0
    floor: Floors = 0.0
    first_update_moves: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def curve(self, num_training_steps: int) -> Curve:
        """The named curve of a run of so many updates; raises ValueError if it does not fit."""
        warmup_steps = self.warmup_steps
        if 0 < warmup_steps < 1:
            warmup_steps = math.ceil(warmup_steps * num_training_steps)
        if warmup_steps > num_training_steps:
            raise ValueError(
                f"warmup_steps is {warmup_steps:g}, the whole run has {num_training_steps} updates"
            )
        return SCHEDULES[self.name](num_training_steps, int(warmup_steps), **self.options)

    def multiplier(self, num_training_steps: int, lowest: float) -> Schedule:
        """Updates made -> multiplier of a learning rate that does not fall below its share."""
        curve = self.curve(num_training_steps)
        start = None if self.first_update_moves else 0.0
        ramp = curve.ramp or compose.warmup(curve.warmup_steps, start)
        whole = compose.join([(ramp, curve.warmup_steps)], compose.floor(curve.decay, lowest))
        return compose.scaled(whole, curve.scale)


def schedule(
    name: str,
    warmup_steps: float = 0,
    floor: Floors = 0.0,
    *,
    first_update_moves: bool = True,
    **options: Any,
) -> ScheduleSpec:
    """Describe a schedule for `TfoptTrainer(schedule=...)` or `attach(schedule=...)`.

    Args:
        name: an entry of `SCHEDULES`.
        warmup_steps: updates until the peak; below 1: a share of the run.
        floor: the lowest multiplier after warm-up, in [0, 1); or one for each group by its name.
        first_update_moves: warm-up begins at 1 / warmup_steps; False: at 0, as the host's does.
        options: those of the schedule.

    Raises:
        UnknownNameError: for an unknown name, with the nearest right one.
        UnknownOptionError: for an unknown option, with the nearest right one.
        ValueError: for a number outside its range.
    """
    known = set(inspect.signature(SCHEDULES[name]).parameters) - {"num_steps", "warmup_steps"}
    for option in options:
        if option not in known:
            raise UnknownOptionError(
                f"schedule {name!r} has no option {option!r}"
                f"{nearest(option, [*known, 'warmup_steps', 'floor', 'first_update_moves'])}; "
                f"options: {', '.join(sorted(known)) or 'none of its own'}"
            )
    if not _is_count_or_share(warmup_steps):
        raise ValueError(f"warmup_steps must be a whole number or a share, got {warmup_steps!r}")
    for lowest in floor.values() if isinstance(floor, Mapping) else [floor]:
        if not 0 <= lowest < 1:
            raise ValueError(f"floor must be 0 or above, and below 1, got {lowest!r}")
    spec = ScheduleSpec(name, warmup_steps, floor, first_update_moves, dict(options))
    spec.curve(max(PLANNED, 2 * int(warmup_steps), 2 * int(options.get("decay_from") or 0)))
    return spec


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    name: str | ScheduleSpec,
    num_training_steps: int,
    warmup_steps: float = 0,
    floor: Floors = 0.0,
    *,
    first_update_moves: bool = True,
    **options: Any,
) -> "GroupScheduler":
    """Build the scheduler of an optimizer; see `schedule` for the arguments.

    Every group's lr is `its own lr · multiplier`, so that groups keep their ratios. Step it once
    after every update. Loading a state sets the rates of its step, also in a run that has become
    longer.

    Raises:
        UnknownNameError, UnknownOptionError, ValueError: as `schedule`, and for numbers that do not
            fit into the run, or floors of groups that the optimizer does not have.
    """
    if isinstance(name, str):
        name = schedule(name, warmup_steps, floor, first_update_moves=first_update_moves, **options)
    return GroupScheduler(optimizer, name, num_training_steps)


class GroupScheduler(LambdaLR):
    """`LambdaLR` with a floor for each group, and momentum where the schedule moves it.

    Args:
        optimizer: whose groups have names if floors are given by name.
        spec: the schedule.
        num_training_steps: updates of the whole run.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, spec: ScheduleSpec, num_training_steps: int
    ):
        floors = _floors(spec.floor, optimizer)
        self._momentum = spec.curve(num_training_steps).momentum
        if self._momentum is not None and any("train_mode" in g for g in optimizer.param_groups):
            raise ValueError(
                f"schedule {spec.name!r} moves the momentum, by which Schedule-Free tells the "
                "weights it trains from those it evaluates: use the schedule 'constant' with it"
            )
        super().__init__(optimizer, [spec.multiplier(num_training_steps, low) for low in floors])
        self._write_momentum()

    def step(self, epoch: int | None = None) -> None:
        """Go on by one update: write every group's rate, and its momentum if that moves."""
        super().step(epoch)
        self._write_momentum()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the step and the peak rates of a saved run, and write the rates of that step."""
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * multiplier(self.last_epoch)
            for base, multiplier in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):  # a compiled step reads it in place
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._write_momentum()

    def state_dict(self) -> dict[str, Any]:
        """The step and the peak rates: plain numbers, no functions."""
        kept = ("base_lrs", "last_epoch", "_step_count", "_last_lr")
        return {**{name: getattr(self, name) for name in kept}, "lr_lambdas": []}

    def _write_momentum(self) -> None:
        if self._momentum is None:
            return
        momentum = self._momentum(self.last_epoch)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum


def _is_count_or_share(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 <= value < 1 or (math.isfinite(value) and value >= 1 and value == int(value))


def _floors(floor: Floors, optimizer: torch.optim.Optimizer) -> list[float]:
    groups = optimizer.param_groups
    if not isinstance(floor, Mapping):
        return [floor] * len(groups)
    names = [str(group.get("name", number)) for number, group in enumerate(groups)]
    for name in floor:
        check_name("group (floor)", name, names)
    return [floor.get(name, 0.0) for name in names]
