"""An event `gradients` with gradients that a test chooses."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import TrainerControl

from hf_tfopt.callbacks.training import Training
from hf_tfopt.optimizers.sharding import shard_as


def event(model: nn.Module, max_grad_norm: float = 0.0, step: int = 0) -> Any:
    """What the host tells, as far as clipping and noise ask."""
    args = SimpleNamespace(max_grad_norm=max_grad_norm, deepspeed_plugin=None)
    state: Any = SimpleNamespace(global_step=step, is_world_process_zero=True)
    return Training(args, state, TrainerControl(), model)


def set_gradients(model: nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Normal numbers, the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        gradient = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = shard_as(parameter, gradient)


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all that there are."""
    pairs = model.named_parameters()
    return {name: p.grad.clone() for name, p in pairs if p.grad is not None}
