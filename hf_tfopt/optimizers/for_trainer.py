"""Optimizers by name, in the form that the host's Trainer takes."""

import inspect
from typing import Any

import torch
from torch import nn

from hf_tfopt.optimizers import OPTIMIZERS
from hf_tfopt.optimizers.param_groups import check_group_options, param_groups
from hf_tfopt.registry import UnknownOptionError, nearest


class OptimizerFactory:
    """What the Trainer instantiates and calls with the model it trains (5.23, trainer.py:1307)."""

    def __call__(
        self, model: nn.Module, name: str, lr: float | None, **options: Any
    ) -> torch.optim.Optimizer:
        """Build the optimizer, see `build_optimizer`."""
        if lr is None:
            raise ValueError(
                "lr=None takes the learning_rate of the TrainingArguments, which a stock Trainer "
                "does not tell: use TfoptTrainer or the mixin, or give the lr itself"
            )
        return build_optimizer(model, name, lr, **options)


def optimizer(
    name: str, lr: float | None, **options: Any
) -> tuple[type[OptimizerFactory], dict[str, Any]]:
    """Describe an optimizer for `Trainer(optimizer_cls_and_kwargs=...)`, which builds it.

    `TrainingArguments.learning_rate`, `weight_decay`, `adam_*` and `optim` are not read then: the
    numbers given here are the only ones.

    Args:
        name: an entry of `OPTIMIZERS`.
        lr: learning rate, above 0; None: `TrainingArguments.learning_rate`, with TfoptTrainer or
            the mixin only, so that a hyperparameter search can set it.
        options: those of `param_groups` and of the optimizer.

    Returns:
        A class whose instance builds the optimizer when called with the model, and its arguments.

    Raises:
        UnknownNameError: for an unknown name, with the nearest right one.
        UnknownOptionError: for an unknown option, with the nearest right one.
        ValueError: for a number outside its range.
    """
    # the Trainer builds it when training starts; what is wrong is to be said now
    for_groups, for_entry = _divided(name, options)
    some_lr = 1.0 if lr is None else lr
    check_group_options(some_lr, **for_groups)
    decay = {key: value for key, value in for_groups.items() if key == "weight_decay"}
    build_optimizer(nn.Linear(2, 2), name, some_lr, **decay, **for_entry)
    return OptimizerFactory, {"name": name, "lr": lr, **options}


def build_optimizer(
    model: nn.Module, name: str, lr: float, **options: Any
) -> torch.optim.Optimizer:
    """Build an optimizer over the parameter groups of a model.

    Equal to `OPTIMIZERS[name](param_groups(model, lr, **those of groups), lr, **the others)`.

    Args:
        model: the model to train.
        name: an entry of `OPTIMIZERS`.
        lr: learning rate, above 0.
        options: those of `param_groups` and of the optimizer.

    Raises:
        UnknownNameError: for an unknown name, with the nearest right one.
        UnknownOptionError: for an unknown option, with the nearest right one.
        ValueError: for a number outside its range, or a model with nothing to train.
    """
    for_groups, for_entry = _divided(name, options)
    return OPTIMIZERS[name](param_groups(model, lr, **for_groups), lr, **for_entry)


def _divided(name: str, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `param_groups`, and those of the optimizer alone."""
    entry = OPTIMIZERS[name]
    of_groups = set(inspect.signature(param_groups).parameters) - {"model", "lr"}
    of_entry = set(inspect.signature(entry).parameters) - {"params", "lr"}
    known = sorted(of_groups | of_entry)
    for option in options:
        if option not in known:
            raise UnknownOptionError(
                f"optimizer {name!r} has no option {option!r}{nearest(option, known)}; "
                f"options: {', '.join(known)}"
            )
    for_groups = {key: value for key, value in options.items() if key in of_groups}
    return for_groups, {key: value for key, value in options.items() if key not in of_groups}
