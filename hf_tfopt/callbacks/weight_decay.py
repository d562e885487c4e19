"""A weight decay that keeps its proportion to the gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.training import Place, Training
from hf_tfopt.optimizers.checks import check_positive, check_share
from hf_tfopt.optimizers.sharding import local, norm, whole_norms


class AdaptiveWeightDecay(Intervention):
    """An intervention: λ ← m·λ + (1 - m)·strength·‖g‖ / ‖θ‖ before every update, λ = 0 at first.

    The norms are of all weights that the optimizer's groups decay (`weight_decay` above 0) as one
    vector, as they reach the optimizer: after clipping, whole where they are sharded. All of these
    groups get the same λ, written into their `weight_decay`, where a checkpoint keeps it. Reading
    the two norms waits for the device once in every update.

    It is made for SGD, whose step is g + λ·θ. Adam and its kin make a step of another length than
    g: under them λ follows ‖g‖ / ‖θ‖ all the same, but does not keep the decay's share of the step.

    Args:
        strength: ‖λ·θ‖ / ‖g‖ that is aimed at, above 0; the paper's λ_awd.
        momentum: share m of the old λ that is kept, in [0, 1).

    Raises:
        ValueError: a number out of its range; when training begins, an optimizer that decays
            nothing, that compiles its step, or whose gradients an engine hides.

    Paper: Ghiasi et al. 2023, Improving Robustness with Adaptive Weight Decay,
        https://arxiv.org/abs/2210.00094, algorithm 1.
    """

    needs_gradients = True
    place = Place.GRADIENTS

    def __init__(self, strength: float, momentum: float = 0.1):
        super().__init__()
        check_positive("strength", strength)
        check_share("momentum", momentum)
        self.strength = strength
        self.momentum = momentum

    def begin(self, training: Training) -> None:
        """Look for groups that decay."""
        groups = _decaying(training.optimizer)
        if not groups:
            raise ValueError(
                "AdaptiveWeightDecay: no group has a weight_decay above 0; give the optimizer one, "
                "of any size, to say which weights decay"
            )
        if any(isinstance(group["lr"], Tensor) for group in groups):  # as torchao's
            raise ValueError(
                "AdaptiveWeightDecay: a compiled optimizer would compile its step anew for every "
                "decay; use one that is not compiled"
            )
        self.remembered.setdefault("decay", 0.0)
        self.remembered.setdefault("has_gradients", False)

    def gradients(self, training: Training) -> None:
        """Write the decay of the update that follows."""
        groups = _decaying(training.optimizer)
        parameters = [parameter for group in groups for parameter in group["params"]]
        if all(parameter.grad is None for parameter in parameters):
            return  # the step is left out, or all of them rest
        decay = adaptive_decay(parameters, self.remembered["decay"], self.strength, self.momentum)
        self.remembered.update(decay=decay, has_gradients=True)
        for group in groups:
            group["weight_decay"] = decay

    def ended(self, training: Training) -> None:
        """Say so, if there was nothing to do."""
        if not self.remembered.get("has_gradients", True):
            self.tell(
                training,
                "no weight decay",
                "AdaptiveWeightDecay: no weight that decays had a gradient in any step, and the "
                "decay stayed as it was given",
            )


def _decaying(optimizer: Any) -> list[dict[str, Any]]:
    return [group for group in optimizer.param_groups if _decays(group)]


def _decays(group: dict[str, Any]) -> bool:
    """Whether the group was given a decay, told once: λ itself may be 0 for a time."""
    return group.setdefault("is_decayed", group["weight_decay"] > 0)


@torch.no_grad()
def adaptive_decay(
    parameters: Sequence[Tensor], before: float, strength: float, momentum: float = 0.1
) -> float:
    """λ of the next update, see `AdaptiveWeightDecay`; `before` where it cannot be told.

    Args:
        parameters: all weights that decay, with gradients.
        before: λ of the update before.
        strength: ‖λ·θ‖ / ‖g‖ that is aimed at.
        momentum: share of `before` that is kept.

    Raises:
        ValueError: no weight has a gradient.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    if not trained:
        raise ValueError("no weight that decays has a gradient: the engine hides them, or all rest")
    pairs = [
        torch.stack([norm(local(p.grad)), norm(local(p))]) for p in trained if p.grad is not None
    ]
    lengths = torch.linalg.vector_norm(whole_norms(torch.stack(pairs, dim=1), trained), dim=1)
    gradient, weight = lengths.tolist()
    ratio = gradient / weight if weight > 0 else 0.0
    found = momentum * before + (1 - momentum) * strength * ratio
    return found if 0 < found < float("inf") else before
