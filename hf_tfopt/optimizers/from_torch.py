"""torch's own optimizers where they are right, through the fused kernel wherever there is one."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import adam_arguments, as_groups, has_fused_kernel
from hf_tfopt.optimizers.checks import check_share


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
    return torch.optim.Adam(**adam_arguments(params, lr, weight_decay, betas, eps))


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
    # torch 2.13's fused SGD moves bf16 and fp16 weights wrongly on a CPU
    is_wide = all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)
    return torch.optim.SGD(
        groups,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        fused=True if is_wide and has_fused_kernel(tensors) else None,
    )
