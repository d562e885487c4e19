"""Muon: momentum, orthogonalised, for the hidden matrices; AdamW for everything else."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import adamw_state, adamw_update
from hf_tfopt.optimizers.checks import (
    check_adam,
    check_count,
    check_positive,
    check_share,
)
from hf_tfopt.optimizers.orthogonalization import fast_dtype, newton_schulz
from hf_tfopt.optimizers.sharding import check_whole, shard_as, whole
from hf_tfopt.optimizers.wide_state import WideStateOptimizer
from hf_tfopt.registry import check_name

Scale = Literal["original", "match_rms_adamw"]
Precision = Literal["auto", "bfloat16", "float32"]

# Up to this size, equal shapes are multiplied as one batch: on CPU up to three times as fast as one
# by one at 128 x 128, about the same from 256 x 256 on, and slower at 768 x 768.
LARGEST_BATCHED_MATRIX = 2**18


@torch.no_grad()
def muon_update(
    gradients: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    momentum: float = 0.95,
    *,
    nesterov: bool = True,
    num_steps: int = 5,
    dtype: torch.dtype = torch.bfloat16,
) -> Sequence[Tensor]:
    """The orthogonalised directions of one step, for matrices of one shape.

    For each: m ← μ m + (1 - μ) g, then `newton_schulz(μ m + (1 - μ) g)`, or of m if not Nesterov.

    Args:
        gradients: each [rows, columns]; sharded ones (DTensor) are gathered, and every process
            orthogonalises all of them.
        momentum_buffers: the averages m, [rows, columns], zeros at first and brought up to date in
            place; in fp32 whatever the gradients are in.
        momentum: share μ of the old average that is kept, in [0, 1).
        nesterov: look one step of momentum ahead.
        num_steps: see `newton_schulz`.
        dtype: see `newton_schulz`.
    """
    directions: list[Tensor] = []
    for gradient, average in zip(gradients, momentum_buffers, strict=True):
        gradient = gradient.to(average.dtype)
        average.lerp_(gradient, 1 - momentum)
        directions.append(whole(gradient.lerp(average, momentum) if nesterov else average))
    if len(directions) == 1 or directions[0].numel() > LARGEST_BATCHED_MATRIX:
        updates: Sequence[Tensor] = [newton_schulz(d, num_steps, dtype) for d in directions]
    else:
        updates = newton_schulz(torch.stack(directions), num_steps, dtype).unbind()
    return [shard_as(m, update) for m, update in zip(momentum_buffers, updates, strict=True)]


def update_scale(num_outputs: int, num_inputs: int, scale: Scale) -> float:
    """What an orthogonalised update is multiplied by, besides the lr.

    original: √max(1, outputs / inputs), which keeps the change of the layer's output independent of
    its shape. match_rms_adamw: 0.2 √max(outputs, inputs), an update whose root mean square is
    about 0.2, as AdamW's is, so that its lr and weight decay serve both.

    Paper: Jordan et al. 2024 (original); Liu et al. 2025, Muon is Scalable for LLM Training,
        arXiv 2502.16982, section 2.2 (match_rms_adamw).
    """
    if scale == "original":
        return math.sqrt(max(1.0, num_outputs / num_inputs))
    return 0.2 * math.sqrt(max(num_outputs, num_inputs))


class Muon(WideStateOptimizer):
    """Muon for the groups of hidden matrices, AdamW for the others.

    Muon's groups: θ ← θ - lr·λ·θ - lr·s·O, with O of `muon_update` and s of `update_scale`. A group
    is Muon's if its `use_muon` says so; without that key, if its `role` is "matrices" or missing.
    The state is kept in fp32, whatever the parameters are in.

    Args:
        params: groups such as `param_groups` gives, or matrices.
        lr: learning rate of groups that have none of their own; with scale "original" in units of
            the spectral norm of one update.
        adamw_lr: learning rate of AdamW where Muon's is `lr`: the lr of every group of AdamW's is
            multiplied by adamw_lr / lr. None: `lr` serves both.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        momentum: share of the old momentum that each step keeps, in [0, 1).
        nesterov: look one step of momentum ahead.
        num_steps: Newton-Schulz iterations, above 0.
        scale: original | match_rms_adamw, see `update_scale`. None: original if there is an
            `adamw_lr`, else match_rms_adamw, with which one lr is right for both.
        precision: of Newton-Schulz; auto: bfloat16 where the hardware multiplies it.
        betas: AdamW's shares, in [0, 1).
        eps: added to AdamW's √v̂, 0 or above.

    Raises:
        ValueError: for a number outside its range, an unknown `scale` or `precision`, a tensor in a
            group of Muon's that is no matrix, or no such group at all.

    Paper: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/. Differs: momentum is an average, as in
        torch.optim.Muon, which the normalisation makes the same.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        adamw_lr: float | None = None,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        num_steps: int = 5,
        scale: Scale | None = None,
        precision: Precision = "auto",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        check_adam(lr, weight_decay, betas, eps)
        check_share("momentum", momentum)
        check_count("num_steps", num_steps)
        check_name("precision", precision, get_args(Precision))
        if adamw_lr is not None:
            check_positive("adamw_lr", adamw_lr)
        scale = scale or ("match_rms_adamw" if adamw_lr is None else "original")
        check_name("scale", scale, get_args(Scale))
        defaults = {
            "adamw_ratio": 1.0 if adamw_lr is None else adamw_lr / lr,
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "num_steps": num_steps,
            "scale": scale,
            "precision": precision,
            "betas": tuple(betas),
            "eps": eps,
            "is_transposed": False,
        }
        super().__init__(params, defaults)
        if not any(group["use_muon"] for group in self.param_groups):
            raise ValueError("no group of hidden matrices for Muon to train; use AdamW instead")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, trained by Muon if its `use_muon` or `role` says so."""
        uses_muon = param_group.get("role", "matrices") == "matrices"
        super().add_param_group({"use_muon": uses_muon, **param_group})
        group = self.param_groups[-1]
        if not group["use_muon"]:
            group["lr"] *= group["adamw_ratio"]
            return
        for tensor in group["params"]:
            if tensor.ndim != 2:
                raise ValueError(
                    f"Muon trains matrices, got a tensor of shape {list(tensor.shape)}; "
                    "put it in a group with use_muon=False, as param_groups(model, ...) does"
                )

    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
        if group["use_muon"]:
            check_whole("Muon", group)
            for alike in _by_shape(trained):
                self._muon_step(alike, group)
        else:
            self._adamw_step(trained, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` gave; raises ValueError if it is another optimizer's."""
        saved_kinds = [group.get("use_muon") for group in state_dict["param_groups"]]
        if saved_kinds != [group["use_muon"] for group in self.param_groups]:
            raise ValueError(
                "the saved state is not of a Muon with these groups: resume with the optimizer "
                "and the groups that it was saved with"
            )
        super().load_state_dict(state_dict)

    def _muon_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        shape, device, dtype = parameters[0].shape, parameters[0].device, parameters[0].dtype
        for parameter in parameters:
            if not self.state[parameter]:
                average = torch.zeros_like(
                    parameter, dtype=torch.promote_types(dtype, torch.float32)
                )
                self.state[parameter]["momentum_buffer"] = average
        precision: Precision = group["precision"]
        updates = muon_update(
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [self.state[parameter]["momentum_buffer"] for parameter in parameters],
            group["momentum"],
            nesterov=group["nesterov"],
            num_steps=group["num_steps"],
            dtype=fast_dtype(device.type) if precision == "auto" else getattr(torch, precision),
        )
        num_outputs, num_inputs = shape[::-1] if group["is_transposed"] else shape
        scale = update_scale(num_outputs, num_inputs, group["scale"])
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * scale)

    def _adamw_step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(adamw_state(parameter))
        adamw_update(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [self.state[parameter] for parameter in parameters],
            **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")},
        )


def _by_shape(parameters: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    alike: dict[tuple[torch.Size, torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        key = (parameter.shape, parameter.device, parameter.dtype)
        alike.setdefault(key, []).append(parameter)
    return alike.values()
