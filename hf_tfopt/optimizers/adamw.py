"""AdamW's step on tensors and states, through torch's fused kernel wherever there is one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw as functional_adamw

# where `torch._fused_adamw_` has a kernel
FUSED_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu"})


def as_groups(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Tensors or groups as groups, and all of their tensors."""
    groups = [entry if isinstance(entry, dict) else {"params": [entry]} for entry in params]
    return groups, [tensor for group in groups for tensor in group["params"]]


def has_fused_kernel(tensors: Iterable[Tensor]) -> bool:
    """Whether torch's fused AdamW kernel takes all of these tensors."""
    return all(
        tensor.device.type in FUSED_DEVICES and tensor.is_floating_point() for tensor in tensors
    )


@torch.no_grad()
def adamw_update(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and their states by one step of AdamW, see `from_torch.adamw`.

    The arithmetic is that of the states: parameters and gradients in less than fp32 are widened for
    the step, so that v, which moves by (1 - β₂)(g² - v), does not stand still in bf16.

    Args:
        parameters: tensors of any shape.
        gradients: their gradients.
        states: see `adamw_state`.
        lr: learning rate.
        betas: share of the old averages that the step keeps.
        eps: added to √v̂.
        weight_decay: decoupled decay.
    """
    if not parameters:
        return
    averages = [state["exp_avg"] for state in states]
    widened = [p.to(average.dtype) for p, average in zip(parameters, averages, strict=True)]
    functional_adamw(
        widened,
        [g.to(average.dtype) for g, average in zip(gradients, averages, strict=True)],
        averages,
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True if has_fused_kernel(parameters) else None,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
    for parameter, wide in zip(parameters, widened, strict=True):
        if wide is not parameter:
            parameter.copy_(wide)


def adamw_state(parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step: both averages in fp32 or wider, and the number of steps."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return {
        "step": torch.zeros((), dtype=torch.float32, device=step_device(parameter)),
        "exp_avg": torch.zeros_like(parameter, dtype=dtype),
        "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
    }


def step_device(parameter: Tensor) -> torch.device:
    """Where the number of steps lives: beside the parameter only if the kernel reads it there."""
    return parameter.device if has_fused_kernel([parameter]) else torch.device("cpu")
