"""Adam's direction by itself, for the optimizers that go on from it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw as functional_adamw

from hf_tfopt.optimizers.adamw import has_fused_kernel
from hf_tfopt.optimizers.foreach import foreach_add, fused_adamw

FOREVER = 1e9  # after so many steps, Adam's averages have no bias left to correct


class AdamDirection(NamedTuple):
    """u = λ·θ + m̂ / (√v̂ + ε), which AdamW would go along, before anything is done to its length.

    Args:
        betas: share of the old averages m and v, of g and g², that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        inner_decay: λ, 0 or above.
        bias_correction: take the averages' bias towards 0 away.
    """

    betas: tuple[float, float]
    eps: float
    inner_decay: float = 0.0
    bias_correction: bool = True

    def write(
        self,
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        out: Sequence[Tensor],
    ) -> None:
        """Write u into `out`, and move the averages and the number of steps of `adamw_state`.

        It is one step of Adam from λ·θ with a learning rate of -1: so torch's fused kernel does it.
        """
        for direction, weight in zip(out, weights, strict=True):
            self._begin(direction, weight)
        steps = [state["step"] for state in states]
        functional_adamw(
            list(out),
            [_laid_out_as(d, g) for d, g in zip(out, gradients, strict=True)],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [self.counted(step) for step in steps],
            fused=True if has_fused_kernel(out) else None,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=-1.0,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )
        if not self.bias_correction:
            foreach_add(steps, 1)

    def write_piece(
        self, weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, out: Tensor, step: Tensor
    ) -> None:
        """`write` of a part of one tensor, all of it flat on one device, by the fused kernel.

        Args:
            weight: with the others in fp32 or wider, of one dtype.
            gradient: of the weight.
            m: the average of g.
            v: the average of g².
            out: u.
            step: `counted`, this step included.
        """
        self._begin(out, weight)
        fused_adamw(
            [out],
            [gradient],
            [m],
            [v],
            [],
            [step],
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=-1.0,
            weight_decay=0.0,
            eps=self.eps,
            maximize=False,
        )

    def counted(self, step: Tensor) -> Tensor:
        """The number of steps that the kernel corrects the bias for."""
        return step if self.bias_correction else torch.full_like(step, FOREVER)

    def _begin(self, direction: Tensor, weight: Tensor) -> None:
        if self.inner_decay:
            torch.mul(weight.to(direction.dtype), self.inner_decay, out=direction)
        else:
            direction.zero_()


def _laid_out_as(pattern: Tensor, tensor: Tensor) -> Tensor:
    """The tensor in the other's dtype and strides: the fused kernel reads both as flat memory."""
    if tensor.dtype == pattern.dtype and tensor.stride() == pattern.stride():
        return tensor
    return torch.empty_like(pattern).copy_(tensor)
