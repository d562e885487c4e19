"""AdamW with its published amendments: cautious steps, stable steps, a decay apart from the lr."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_tfopt.optimizers.adam_direction import AdamDirection
from hf_tfopt.optimizers.adamw import adamw_state
from hf_tfopt.optimizers.checks import check_adam, check_positive
from hf_tfopt.optimizers.sharding import check_whole, local, norm, whole_norms
from hf_tfopt.optimizers.wide_state import WideStateOptimizer
from hf_tfopt.registry import check_name

Decay = Literal["lr_coupled", "decoupled"]


class AdamWVariant(WideStateOptimizer):
    """AdamW, cautious, stable, or with a decay apart from its lr; any of them together.

        θ ← θ - d·λ·θ - η·c·u;   u = m̂ / (√v̂ + ε)

    stable: η = lr / max(1, RMS(g / max(√v̂, ε))), a shorter step where v has fallen behind g; else
    η = lr. cautious: c = n / (k + 1) where u and g agree in sign, 0 elsewhere, with n the number of
    a tensor's weights whose g is not 0 and k of those where they agree; else c = 1. decay: d = η
    with "lr_coupled", as torch has it; with "decoupled" d = η / lr₀, which a schedule moves but not
    the peak lr₀ of the group. Sums are over whole tensors, also where they are sharded (DTensor).
    The state is kept in fp32, whatever the parameters are in.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: λ of groups that have none of their own, 0 or above.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above; above 0 if stable.
        cautious: move only weights that the direction and the gradient agree on.
        stable: shorten steps of tensors whose gradients have suddenly grown.
        decay: lr_coupled | decoupled.

    Raises:
        ValueError: for a number outside its range or an unknown `decay`.

    Paper: Liang et al. 2024, Cautious Optimizers, https://arxiv.org/abs/2411.16085, algorithm 2
        (differs: n is of all weights there, which lengthens the steps of a table's few rows that a
        batch has words of);
        Wortsman et al. 2023, Stable and low-precision training, https://arxiv.org/abs/2304.13013,
        algorithm 2 (stable); Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101,
        algorithm 2 (decoupled: their η is a schedule's multiplier, without the lr).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        cautious: bool = False,
        stable: bool = False,
        decay: Decay = "lr_coupled",
    ):
        check_adam(lr, weight_decay, betas, eps)
        if stable:
            check_positive("eps", eps)
        check_name("decay", decay, get_args(Decay))
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": tuple(betas),
            "eps": eps,
            "cautious": cautious,
            "stable": stable,
            "decay": decay,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the lr it comes with is its peak."""
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault("peak_lr", self.param_groups[-1]["lr"])

    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
        if group["cautious"] or group["stable"]:
            check_whole("AdamW, cautious or stable,", group)
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter].update(adamw_state(parameter))
        unit = group["peak_lr"] if group["decay"] == "decoupled" else 1.0
        adamw_variant_update(
            trained,
            [self.state[parameter] for parameter in trained],
            **{key: group[key] for key in ("lr", "betas", "eps", "cautious", "stable")},
            weight_decay=group["weight_decay"] / unit,
        )


@torch.no_grad()
def adamw_variant_update(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    cautious: bool = False,
    stable: bool = False,
) -> None:
    """Update parameters with their gradients, and their states, by one step, see `AdamWVariant`.

    Args:
        parameters: tensors of any shape, with gradients; in less than fp32 they are widened for
            the step.
        states: see `adamw_state`.
        lr: learning rate.
        betas: share of the old averages that the step keeps.
        eps: added to √v̂.
        weight_decay: λ, multiplied by η.
        cautious: see `AdamWVariant`.
        stable: see `AdamWVariant`.
    """
    adam = AdamDirection(betas, eps)
    for parameter, state in zip(parameters, states, strict=True):
        assert parameter.grad is not None
        own = {key: local(value) for key, value in state.items()}
        weight, gradient = local(parameter), local(parameter.grad).to(own["exp_avg"].dtype)
        direction = torch.empty_like(own["exp_avg"])
        adam.write([weight], [gradient], [own], [direction])
        shorter = _stable_factor(parameter, gradient, own, betas[1], eps) if stable else 1.0
        if cautious:
            _keep_agreeing(parameter, direction, gradient)
        wide = weight.to(direction.dtype)
        wide.mul_(1 - shorter * (lr * weight_decay))
        weight.copy_(wide.add_(direction.mul_(shorter), alpha=-lr))


def _stable_factor(
    parameter: Tensor, gradient: Tensor, state: Mapping[str, Tensor], beta2: float, eps: float
) -> Tensor:
    """1 / max(1, RMS(g / max(√v̂, ε))): [] on the parameter's device."""
    unbiased = state["exp_avg_sq"] / (1 - beta2 ** state["step"]).to(gradient.device)
    ratio = gradient / unbiased.sqrt_().clamp_(min=eps)
    rms = _whole_norm(ratio, parameter) / parameter.numel() ** 0.5
    return 1 / rms.clamp(min=1)


def _keep_agreeing(parameter: Tensor, direction: Tensor, gradient: Tensor) -> None:
    """Multiply the direction by n / (k + 1) where it agrees with the gradient, by 0 elsewhere."""
    agree = ((direction * gradient) > 0).to(direction.dtype)
    counts = [
        _whole_norm(flags, parameter).square()  # of zeros and ones
        for flags in ((gradient != 0).to(direction.dtype), agree)
    ]
    direction.mul_(agree).mul_(counts[0] / (counts[1] + 1))


def _whole_norm(tensor: Tensor, parameter: Tensor) -> Tensor:
    return whole_norms(norm(tensor)[None, None], [parameter])[0, 0]
