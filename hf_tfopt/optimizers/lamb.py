"""LAMB: Adam's update with the decay inside, made as long as the weights that it changes."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adam_direction import AdamDirection
from hf_tfopt.optimizers.adamw import adamw_state
from hf_tfopt.optimizers.checks import check_adam, check_positive
from hf_tfopt.optimizers.foreach import foreach_add, foreach_mul, foreach_norm
from hf_tfopt.optimizers.kernels import Scratch, lamb_step, room_in
from hf_tfopt.optimizers.lamb_passes import CompiledPasses, EagerPasses, Passes
from hf_tfopt.optimizers.sharding import check_whole, local, whole_norms
from hf_tfopt.optimizers.wide_state import WideStateOptimizer

SMALLEST_ALONE = 2**16  # numbers; below, what a kernel costs to call is most of its time


class Lamb(WideStateOptimizer):
    """LAMB as published: θ ← θ - lr·φ·u, tensor by tensor.

        u = m̂ / (√v̂ + ε) + λ·θ;   φ = ‖θ‖ / ‖u‖, or 1 where either norm is 0

    with Adam's averages m and v of g and g². Norms are of whole tensors, also where they are
    sharded (DTensor). φ is 1 for groups whose `role` is "vectors" (biases and normalisations, as
    `param_groups` finds them), as in the paper's own code. The state is kept in fp32, whatever the
    parameters are in. On a CPU with a C++ compiler the step of fp32 parameters is one call of our
    own, equal to fp32's rounding.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own: the share of its length by which
            a tensor moves in one step.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        weight_decay: λ of groups that have none of their own, 0 or above.
        bias_correction: take the averages' bias towards 0 away.
        max_trust_ratio: the largest φ; None: any, as published.
        adapt_vectors: φ for groups of vectors too.
        compiled: two passes over large tensors, compiled by torch in some ten seconds, instead of
            five eager ones, for what our C++ does not take: a GPU's tensors, and bf16.

    Raises:
        ValueError: for a number outside its range, or parameters that an engine has flattened
            (DeepSpeed ZeRO, FSDP1): the norms of their tensors are lost.

    Paper: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
        https://arxiv.org/abs/1904.00962, algorithm 2. Differs: ‖θ‖ itself for the paper's function
        of it, as in its experiments.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        max_trust_ratio: float | None = None,
        adapt_vectors: bool = False,
        compiled: bool = False,
    ):
        check_adam(lr, weight_decay, betas, eps)
        if max_trust_ratio is not None:
            check_positive("max_trust_ratio", max_trust_ratio)
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": tuple(betas),
            "eps": eps,
            "bias_correction": bias_correction,
            "max_trust_ratio": max_trust_ratio,
            "adapt_vectors": adapt_vectors,
            "compiled": compiled,
        }
        super().__init__(params, defaults)
        self._scratch: Scratch = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what pickling or copying keeps; the scratch is made anew."""
        super().__setstate__(state)
        self._scratch = {}

    def step_group(self, trained: list[Tensor], group: dict[str, Any]) -> None:
        """Update the parameters of a group that have a gradient."""
        check_whole("LAMB", group)
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter].update(lamb_state(parameter))
        lamb_update(
            trained,
            [self.state[parameter] for parameter in trained],
            **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")},
            bias_correction=group["bias_correction"],
            max_trust_ratio=group["max_trust_ratio"],
            is_adaptive=group["adapt_vectors"] or group.get("role") != "vectors",
            compiled=group["compiled"],
            scratch=self._scratch,
        )

    def trust_ratios(self) -> dict[str, float]:
        """φ of every parameter in its last step, by its name; without names, by its number."""
        ratios: dict[str, float] = {}
        for group in self.param_groups:
            numbers = range(len(ratios), len(ratios) + len(group["params"]))
            names = group.get("param_names", map(str, numbers))
            for name, parameter in zip(names, group["params"], strict=True):
                if "trust_ratio" in self.state[parameter]:
                    ratios[name] = float(self.state[parameter]["trust_ratio"])
        return ratios


def lamb_state(parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step: AdamW's, sharded as the parameter is, and φ."""
    state = adamw_state(parameter)
    return {**state, "trust_ratio": torch.ones((), device=parameter.device)}


@torch.no_grad()
def lamb_update(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    bias_correction: bool = True,
    max_trust_ratio: float | None = None,
    is_adaptive: bool = True,
    compiled: bool = False,
    scratch: Scratch | None = None,
) -> None:
    """Update parameters with their gradients, and their states, by one step of LAMB, see `Lamb`.

    Args:
        parameters: tensors of any shape, with gradients; in less than fp32 they are widened for
            the step.
        states: see `lamb_state`; `trust_ratio` is φ afterwards.
        lr: learning rate.
        betas: share of the old averages that the step keeps.
        eps: added to √v̂.
        weight_decay: λ.
        bias_correction: take the averages' bias away.
        max_trust_ratio: the largest φ; None: any.
        is_adaptive: False: φ is 1.
        compiled: see `CompiledPasses`.
        scratch: memory to use again in the next step: as much as the largest parameter.
    """
    if not parameters:
        return
    adam = AdamDirection(betas, eps, weight_decay, bias_correction)
    memory: Scratch = {} if scratch is None else scratch
    if lamb_step(parameters, states, adam, lr, max_trust_ratio, is_adaptive, memory):
        return
    passes = CompiledPasses(adam) if compiled else EagerPasses(adam)
    pairs = list(zip(parameters, states, strict=True))
    is_alone = [
        p.numel() >= SMALLEST_ALONE and (p.device.type == "cpu" or compiled) for p in parameters
    ]
    alone = [pair for pair, is_so in zip(pairs, is_alone, strict=True) if is_so]
    others = [pair for pair, is_so in zip(pairs, is_alone, strict=True) if not is_so]
    if alone:
        _step_one_by_one(alone, passes, lr, max_trust_ratio, is_adaptive, memory)
    if others:
        _step_together(others, adam, lr, max_trust_ratio, is_adaptive)


def _step_one_by_one(
    pairs: Sequence[tuple[Tensor, dict[str, Tensor]]],
    passes: Passes,
    lr: float,
    max_trust_ratio: float | None,
    is_adaptive: bool,
    scratch: Scratch,
) -> None:
    """Parameter by parameter, where kernels are as fast alone: one scratch serves all."""
    averages = [local(state["exp_avg"]) for _, state in pairs]
    for (parameter, state), m in zip(pairs, averages, strict=True):
        assert parameter.grad is not None
        weight, gradient = local(parameter), local(parameter.grad)
        direction = room_in(scratch, m.numel(), m).as_strided(m.shape, m.stride())
        own = {key: local(value) for key, value in state.items()}
        norms = passes.first(weight, gradient, own, direction)
        if is_adaptive:
            lengths = whole_norms(norms[:, None], [parameter])
            state["trust_ratio"] = trust_ratio(lengths[0, 0], lengths[1, 0], max_trust_ratio)
        else:
            state["trust_ratio"] = torch.ones((), device=m.device)
        passes.second(weight, direction, lr * state["trust_ratio"])


def _step_together(
    pairs: Sequence[tuple[Tensor, dict[str, Tensor]]],
    adam: AdamDirection,
    lr: float,
    max_trust_ratio: float | None,
    is_adaptive: bool,
) -> None:
    """All parameters of a group in a few kernels."""
    parameters, states = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    weights = [local(parameter) for parameter in parameters]
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    local_states = [{key: local(value) for key, value in state.items()} for state in states]
    directions = [torch.empty_like(state["exp_avg"]) for state in local_states]
    adam.write(weights, gradients, local_states, directions)
    ratios = torch.ones(len(parameters), device=weights[0].device)
    if is_adaptive:
        wide = reduce(torch.promote_types, [direction.dtype for direction in directions])
        norms = [torch.stack(foreach_norm(group, 2, wide)) for group in (weights, directions)]
        lengths = whole_norms(torch.stack(norms), parameters)
        ratios = trust_ratio(lengths[0], lengths[1], max_trust_ratio)
        foreach_mul(directions, list(ratios.unbind()))
    foreach_add(weights, directions, alpha=-lr)
    for state, ratio in zip(states, ratios.unbind(), strict=True):
        state["trust_ratio"] = ratio


def trust_ratio(weight_norms: Tensor, update_norms: Tensor, largest: float | None) -> Tensor:
    """φ = ‖θ‖ / ‖u‖, 1 where either is 0, at most `largest`; of any shape."""
    is_moving = (weight_norms > 0) & (update_norms > 0)
    ratio = torch.where(is_moving, weight_norms / update_norms, 1.0)
    return ratio if largest is None else ratio.clamp(max=largest)
