"""Adafactor: AdamW's second average kept as its rows and columns, and steps relative to weights."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import step_device
from hf_tfopt.optimizers.checks import check_not_negative, check_positive, check_share
from hf_tfopt.optimizers.sharding import check_whole, norm
from hf_tfopt.optimizers.wide_state import WideStateOptimizer

LARGEST_RELATIVE_STEP = 1e-2  # section 9 of the paper, as is the next line
FIRST_RELATIVE_STEP = 1e-6  # with warmup_init
_OF_THE_UPDATE = (
    *("lr", "weight_decay", "relative_step", "scale_parameter", "warmup_init"),
    *("clip_threshold", "decay_rate", "beta1", "eps"),
)


class Adafactor(WideStateOptimizer):
    """Adafactor: θ ← θ - ρ·λ·θ - ρ·s·U / max(1, RMS(U) / d), tensor by tensor.

        U = g / √V;  V = R·Cᵀ / mean(R), of R and C, the averages of the means of g² + ε₁ over
        columns and over rows, of which step t keeps 1 - t^-decay_rate

    ρ is the lr and s is 1, so that an lr means what AdamW's does. With `relative_step` ρ is
    lr · min(1/100, 1/√t), which at lr=1 is the paper's schedule, so that another one is best left
    constant; and with `scale_parameter` s = max(ε₂, RMS(θ)), so that ρ is the share of its RMS by
    which a tensor moves. The paper has both. Tensors of more than two dimensions are
    factored over the last two, those of fewer keep all of V: the state of a matrix is as large as
    one row and one column, in fp32 whatever the parameters are in.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        relative_step: let ρ fall with the steps.
        scale_parameter: make steps in proportion to the weights; None: as relative_step.
        warmup_init: ρ starts at lr · t / 10⁶; needs relative_step.
        clip_threshold: d, the largest RMS of U.
        decay_rate: above 0: the smaller, the longer the averages.
        beta1: share of the old average that each step keeps of the update (the paper's first
            moment, as large as the parameters), in [0, 1); 0: none.
        factored: False: all of V, also of matrices.
        eps: ε₁, added to g², and ε₂, the smallest RMS(θ); above 0.

    Raises:
        ValueError: for a number outside its range, warmup_init without relative_step, or parameters
            that an engine has flattened (DeepSpeed ZeRO, FSDP1): their rows and columns are lost.

    Paper: Shazeer and Stern 2018, Adafactor, https://arxiv.org/abs/1804.04235, algorithms 4 to 6.
        Differs: it has no weight decay, and no lr.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        relative_step: bool = False,
        scale_parameter: bool | None = None,
        warmup_init: bool = False,
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float = 0.0,
        factored: bool = True,
        eps: tuple[float, float] = (1e-30, 1e-3),
    ):
        check_positive("lr", lr)
        check_not_negative("weight_decay", weight_decay)
        check_positive("clip_threshold", clip_threshold)
        check_positive("decay_rate", decay_rate)
        check_share("beta1", beta1)
        _check_eps(eps)
        if warmup_init and not relative_step:
            raise ValueError(
                "warmup_init needs relative_step=True: it is the start of its schedule"
            )
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "relative_step": relative_step,
            "scale_parameter": relative_step if scale_parameter is None else scale_parameter,
            "warmup_init": warmup_init,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "factored": factored,
            "eps": tuple(eps),
        }
        super().__init__(params, defaults)

    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
        check_whole("Adafactor", group)
        options = {key: group[key] for key in _OF_THE_UPDATE}
        for parameter in trained:
            state = self.state[parameter]
            if not state:
                state.update(adafactor_state(parameter, group["factored"], group["beta1"] > 0))
            assert parameter.grad is not None
            adafactor_update(parameter, parameter.grad, state, **options)


def adafactor_state(
    parameter: Tensor, factored: bool = True, has_momentum: bool = False
) -> dict[str, Tensor]:
    """The state before the first step: [..., rows] and [..., columns], or all of V."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    shape = parameter.shape
    state = {"step": torch.zeros((), dtype=torch.float32, device=step_device(parameter))}
    if factored and parameter.ndim > 1:
        state["exp_avg_sq_row"] = parameter.new_zeros(shape[:-1], dtype=dtype)
        state["exp_avg_sq_col"] = parameter.new_zeros(shape[:-2] + shape[-1:], dtype=dtype)
    else:
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=dtype)
    if has_momentum:
        state["exp_avg"] = torch.zeros_like(parameter, dtype=dtype)
    return state


@torch.no_grad()
def adafactor_update(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    *,
    lr: float,
    weight_decay: float,
    relative_step: bool,
    scale_parameter: bool,
    warmup_init: bool,
    clip_threshold: float,
    decay_rate: float,
    beta1: float,
    eps: tuple[float, float],
) -> None:
    """Update a parameter and its state by one step of Adafactor, see `Adafactor`.

    Args:
        parameter: of any shape; in less than fp32 it is widened for the step.
        gradient: its gradient.
        state: see `adafactor_state`.
        lr: learning rate.
        weight_decay: decoupled decay λ.
        relative_step: let the step fall with 1/√t.
        scale_parameter: multiply the step by RMS(θ).
        warmup_init: let the step rise at first.
        clip_threshold: d, the largest RMS of U.
        decay_rate: of the share that the averages forget.
        beta1: share of the old average of updates; above 0 the state must have one.
        eps: added to g²; the smallest RMS(θ).
    """
    state["step"] += 1
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    t = state["step"].to(parameter.device, dtype)
    wide = parameter.to(dtype)
    update = _normalised(gradient.to(dtype), state, t.pow(-decay_rate), eps[0])
    step_size = lr * _relative_step(t, warmup_init) if relative_step else lr
    size = step_size * _rms(wide).clamp(min=eps[1]) if scale_parameter else step_size
    shrink = (_rms(update) / clip_threshold).clamp(min=1.0)
    update.mul_(size / shrink)
    if beta1:
        update = state["exp_avg"].lerp_(update, 1 - beta1)
    if weight_decay:
        wide.mul_(1 - step_size * weight_decay)
    wide.sub_(update)
    if wide is not parameter:
        parameter.copy_(wide)


def _normalised(gradient: Tensor, state: dict[str, Tensor], new: Tensor, eps: float) -> Tensor:
    """U = g / √V, after the averages have taken a share `new` of this gradient's squares."""
    squares = gradient.square()
    if "exp_avg_sq" in state:
        average = state["exp_avg_sq"].lerp_(squares.add_(eps), new)
        return average.rsqrt().mul_(gradient)
    rows = state["exp_avg_sq_row"].lerp_(squares.mean(dim=-1).add_(eps), new)
    columns = state["exp_avg_sq_col"].lerp_(squares.mean(dim=-2).add_(eps), new)
    # one factor after the other: the product of two small ones would be 0
    shares = rows / rows.mean(dim=-1, keepdim=True)
    update = gradient * shares.rsqrt_().unsqueeze(-1)
    return update.mul_(columns.rsqrt().unsqueeze(-2))


def _relative_step(t: Tensor, warmup_init: bool) -> Tensor:
    """min(1/100, 1/√t); with a warm-up, min(t / 10⁶, 1/√t)."""
    if warmup_init:
        return torch.minimum(t * FIRST_RELATIVE_STEP, t.rsqrt())
    return t.rsqrt().clamp(max=LARGEST_RELATIVE_STEP)


def _rms(tensor: Tensor) -> Tensor:
    return norm(tensor) / max(tensor.numel(), 1) ** 0.5


def _check_eps(eps: Sequence[float]) -> None:
    if len(eps) != 2:
        raise ValueError(f"eps must be two numbers, of g² and of RMS(θ), got {eps!r}")
    for index, number in enumerate(eps):
        check_positive(f"eps[{index}]", number)
