"""Which parameters an optimizer trains, and what must follow when a callback changes them."""

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


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


def forget_gathered(model: nn.Module) -> None:
    """Let FSDP2 gather its parameters anew: what it holds gathered is as they were before."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
