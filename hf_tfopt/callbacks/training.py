"""What the host tells callbacks of a training, and what they tell its log."""

import math
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

# A number, or numbers by layer or head: nested lists go into `log_history` alone, not to trackers.
Scalars = Mapping[str, float | Tensor | list[Any]]


class Place(IntEnum):
    """Where a callback stands among ours, whatever the order in which they were given."""

    MONITOR = 0  # sees gradients that nobody has changed
    GUARD = 1  # before what would act on a step that is left out
    CLIPPING = 2
    GRADIENTS = 3  # noise is not clipped
    LAST = 4


@dataclass(frozen=True)
class Training:
    """What the host tells in each event.

    Args:
        args: the TrainingArguments.
        state: `global_step` is the number of finished steps.
        control: what the host is to do next.
        model: as the host holds it, perhaps under FSDP2 or PEFT.
        optimizer: accelerate's wrapper of the optimizer.
        scheduler: of the learning rate.
        data: the training dataloader.
    """

    args: TrainingArguments
    state: TrainerState
    control: TrainerControl
    model: Any = None
    optimizer: Any = None
    scheduler: Any = None
    data: Any = None


def is_due(training: Training, every: int | None, gap: int = 1) -> bool:
    """Whether the step that begins is to be measured.

    Args:
        training: before the step.
        every: one of so many steps; None: the steps whose loss the host logs.
        gap: of those, the first one and the first in every stretch of so many steps.
    """
    number = training.state.global_step + 1
    if every is not None:
        return number % every == 0
    args, interval = training.args, _logging_interval(training)
    is_last = number == training.state.max_steps and args.logging_strategy == "epoch"
    is_first = number == 1 and args.logging_first_step and args.logging_strategy == "steps"
    if is_first or is_last:
        return True
    if interval is None or number % interval:
        return False
    before = number - interval
    return before == 0 or number // gap > before // gap


def _logging_interval(training: Training) -> int | None:
    """Steps from one log to the next; None: there are none, or their number is not known."""
    strategy = training.args.logging_strategy
    if strategy == "steps":
        return max(1, int(training.state.logging_steps))
    if strategy != "epoch" or not isinstance(training.data, Sized):
        return None
    try:
        num_batches = len(training.data)
    except TypeError:  # of a stream nobody knows
        return None
    return max(1, math.ceil(num_batches / training.args.gradient_accumulation_steps))


def as_numbers(scalars: Scalars) -> dict[str, float | list[Any]]:
    """Tensors of one number read back, all of them at once."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
    read: dict[str, float] = {}
    by_device: dict[torch.device, list[str]] = {}
    for name, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(name)
    for names in by_device.values():
        stacked = torch.stack([tensors[name].detach().double().reshape(()) for name in names])
        read.update(zip(names, stacked.tolist(), strict=True))
    return {name: read[name] if name in read else _plain(value) for name, value in scalars.items()}


def _plain(value: Any) -> float | list[Any]:
    return value if isinstance(value, list) else float(value)


def check_gradients_are_seen(who: str, training: Training) -> None:
    """Refuse engines that hide the gradients of single parameters from callbacks.

    Raises:
        ValueError: DeepSpeed, which has made its update before a callback is asked; FSDP1, which
            joins parameters.
    """
    parameters = () if training.model is None else training.model.parameters()
    has_joined = any(type(parameter).__name__ == "FlatParameter" for parameter in parameters)
    if training.args.deepspeed_plugin is not None or has_joined:
        reason = "FSDP1 joins them" if has_joined else "DeepSpeed makes it within backward()"
        raise ValueError(
            f"{who} needs the gradient of each parameter before the update, but {reason}: use DDP "
            "or FSDP2, or leave it out"
        )


def training_of(
    args: TrainingArguments, state: TrainerState, control: TrainerControl, told: dict[str, Any]
) -> Training:
    """The event that the host tells of."""
    return Training(
        args,
        state,
        control,
        told.get("model"),
        told.get("optimizer"),
        told.get("lr_scheduler"),
        told.get("train_dataloader"),
    )
