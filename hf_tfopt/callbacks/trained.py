"""Which parameters an optimizer trains."""

from typing import Any

from torch import nn


def innermost(optimizer: Any) -> Any:
    """The optimizer itself, out of the wrappers of accelerate."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def trained_parameters(model: nn.Module, optimizer: Any) -> dict[str, nn.Parameter]:
    """The parameters of a model that its optimizer holds, by their first names.

    Not those that require a gradient: what is frozen for a while is trained too.
    """
    held = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    return {name: tensor for name, tensor in model.named_parameters() if id(tensor) in held}
