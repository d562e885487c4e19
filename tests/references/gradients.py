"""Norms of gradients and the noise of a batch, tensor by tensor and example by example."""

import torch
from torch import Tensor, nn

from hf_tfopt.callbacks.blocks import roles
from hf_tfopt.places import named_places


def norms_by(group_of: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, float]:
    """‖·‖ of each group as one vector, in fp64."""
    found: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(group_of[name], []).append(tensor.detach().double().flatten())
    return {group: torch.cat(parts).norm().item() for group, parts in found.items()}


def block_of(model: nn.Module) -> dict[str, str]:
    return {name: place.label for name, place in named_places(model).items()}


def role_of(model: nn.Module) -> dict[str, str]:
    return roles(model)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each."""
    pairs = model.named_parameters()
    return {name: p.grad.clone() for name, p in pairs if p.grad is not None}


def signal_and_variance(gradients: Tensor) -> tuple[float, float]:
    """‖G‖² and tr Σ without bias, from the gradient of every example [examples, parameters]."""
    gradients = gradients.double()
    mean = gradients.mean(0)
    variance = (gradients - mean).square().sum() / (len(gradients) - 1)
    return (mean.square().sum() - variance / len(gradients)).item(), variance.item()
