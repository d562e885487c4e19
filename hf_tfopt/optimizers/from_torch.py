"""torch's own optimizers where they are right, through the fused kernel wherever there is one."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_tfopt.optimizers.adamw import as_groups, has_fused_kernel
from hf_tfopt.optimizers.adamw_variant import AdamWVariant, Decay
from hf_tfopt.optimizers.checks import check_betas, check_not_negative, check_share


def adam(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Adam:
    """Build `torch.optim.Adam`: θ ← θ - lr·m̂ / (√v̂ + ε), of the averages of g + λ·θ.

    Its decay goes through the averages, and is therefore hardly one where gradients are large: for
    a decay take adamw.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: λ of groups that have none of their own, 0 or above.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.

    Raises:
        ValueError: for a number outside its range.

    Paper: Kingma and Ba 2015, Adam, https://arxiv.org/abs/1412.6980, algorithm 1.
    """
    return torch.optim.Adam(**_adam_arguments(params, lr, weight_decay, betas, eps))


def adamw(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    cautious: bool = False,
    stable: bool = False,
    decay: Decay = "lr_coupled",
) -> torch.optim.Optimizer:
    """Build `torch.optim.AdamW`, fused where the device has the kernel; or an `AdamWVariant`.

    θ ← θ - lr·λ·θ - lr·m̂ / (√v̂ + ε), m̂ and v̂ being the averages of g and g², without their bias.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        cautious: move only weights that the direction and the gradient agree on.
        stable: shorten steps of tensors whose gradients have suddenly grown.
        decay: lr_coupled: λ is multiplied by the lr, as above; decoupled: by the lr's share of its
            peak, so that λ is the share of its length that a weight loses in a step.

    Raises:
        ValueError: for a number outside its range or an unknown `decay`.

    Paper: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization,
        https://arxiv.org/abs/1711.05101, algorithm 2. Differs: as in torch, λ is multiplied by the
        scheduled lr, unless `decoupled`. The other options' papers: see `AdamWVariant`.
    """
    if cautious or stable or decay != "lr_coupled":
        return AdamWVariant(params, lr, weight_decay, betas, eps, cautious, stable, decay)
    return torch.optim.AdamW(**_adam_arguments(params, lr, weight_decay, betas, eps))


def sgd(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """Build `torch.optim.SGD`: b ← μ·b + g + λ·θ, θ ← θ - lr·b.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: λ of groups that have none of their own, 0 or above.
        momentum: μ, share of the old b that each step keeps, in [0, 1).
        nesterov: look one step of momentum ahead; needs a momentum.

    Raises:
        ValueError: for a number outside its range.

    Paper: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning,
        https://proceedings.mlr.press/v28/sutskever13.html. Differs: as in torch, lr stands outside
        the momentum.
    """
    check_share("momentum", momentum)
    if nesterov and not momentum:
        raise ValueError("nesterov needs a momentum above 0")
    groups, tensors = as_groups(params)
    # torch 2.13's fused SGD moves bf16 and fp16 weights wrongly on a CPU, and no sharded ones
    is_wide = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    is_whole = not any(isinstance(tensor, DTensor) for tensor in tensors)
    return torch.optim.SGD(
        groups,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        fused=True if is_wide and is_whole and has_fused_kernel(tensors) else None,
    )


def _adam_arguments(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
) -> dict[str, Any]:
    """Check what torch's Adam and AdamW take alike, and choose the fused kernel if there is one."""
    check_betas(betas)
    check_not_negative("eps", eps)
    groups, tensors = as_groups(params)
    return {
        "params": groups,
        "lr": lr,
        "weight_decay": weight_decay,
        "betas": tuple(betas),
        "eps": eps,
        "fused": True if has_fused_kernel(tensors) else None,
    }
