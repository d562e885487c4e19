"""Which parameters an optimizer trains, and what must follow when a callback changes them."""

import logging
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from hf_tfopt.callbacks.training import Training

logger = logging.getLogger(__name__)


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


def check_weights(who: str, training: Training, optimizer: Any) -> None:
    """Raise ValueError where the model's weights are not those that the optimizer trains."""
    flat = any(type(tensor).__name__ == "FlatParameter" for tensor in training.model.parameters())
    if training.args.deepspeed_plugin is not None or flat:
        raise ValueError(
            f"{who} puts averages into the model's weights, but an engine trains joined copies "
            f"({'FSDP1' if flat else 'DeepSpeed'}): use DDP or FSDP2, or leave it out"
        )
    if callable(getattr(type(optimizer), "eval", None)):
        raise ValueError(
            f"{type(optimizer).__name__} evaluates an average of its own, and {who} would average "
            "other weights: leave one of them out"
        )
    if any(hasattr(module, "running_mean") for module in training.model.modules()):
        logger.warning(
            "%s averages no buffers: the statistics of batch normalisation are those of the "
            "weights that are trained; compute them anew with torch.optim.swa_utils.update_bn",
            who,
        )
