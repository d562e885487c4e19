"""Lion: the sign of a momentum, and one state for each weight."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.checks import check_adam
from hf_tfopt.optimizers.foreach import (
    foreach_add,
    foreach_lerp,
    foreach_lerped,
    foreach_mul,
    foreach_sign,
)
from hf_tfopt.optimizers.wide_state import WideStateOptimizer


class Lion(WideStateOptimizer):
    """Lion: θ ← θ - lr·λ·θ - lr·sign(β₁·m + (1 - β₁)·g), then m ← β₂·m + (1 - β₂)·g.

    Every weight moves by lr in every step: its lr is usually 3 to 10 times smaller than AdamW's,
    and λ as much larger. The state is kept in fp32, whatever the parameters are in.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        betas: β₁, the share of the momentum in the direction, and β₂, in itself; in [0, 1).

    Raises:
        ValueError: for a number outside its range.

    Paper: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms,
        https://arxiv.org/abs/2302.06675, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.99),
    ):
        check_adam(lr, weight_decay, betas)
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": tuple(betas)})

    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
        for parameter in trained:
            if not self.state[parameter]:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
        lion_update(
            trained,
            [parameter.grad for parameter in trained if parameter.grad is not None],
            [self.state[parameter]["exp_avg"] for parameter in trained],
            **{key: group[key] for key in ("lr", "betas", "weight_decay")},
        )


@torch.no_grad()
def lion_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Update parameters and their momenta by one step of Lion, see `Lion`.

    Args:
        parameters: tensors of any shape.
        gradients: theirs; in less than the momenta's precision they are widened.
        momenta: averages of the gradients.
        lr: learning rate.
        betas: share of the momentum in the direction and in itself.
        weight_decay: decoupled decay.
    """
    if not parameters:
        return
    wide = [g.to(m.dtype) for g, m in zip(gradients, momenta, strict=True)]
    directions = foreach_lerped(momenta, wide, 1 - betas[0])
    foreach_sign(directions)
    if weight_decay:
        foreach_mul(parameters, 1 - lr * weight_decay)
    foreach_add(parameters, directions, alpha=-lr)
    foreach_lerp(momenta, wide, 1 - betas[1])
