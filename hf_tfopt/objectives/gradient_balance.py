"""Tasks balanced by their gradients: GradNorm weighs the losses, PCGrad projects conflicts away."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from hf_tfopt.losses.multitask import gradnorm_weights, pcgrad_coefficients, pcgrad_orders
from hf_tfopt.losses.reduction import LossSum, Terms
from hf_tfopt.objectives.multitask import (
    Multitask,
    UncertaintyWeighting,
    logged,
    logged_only,
    with_weighted,
)
from hf_tfopt.places import named_places
from hf_tfopt.surgery.multitask import MultitaskModel, MultitaskOutput

Batch = Mapping[str, Any]
Mean = Callable[[Tensor], Tensor]


class GradNorm(Multitask):
    """Tasks weighed so that they learn at one pace: `sum_i w_i L_i`, w_i from the gradients.

    After every step the weights move so that the norms of the tasks' gradients, by the matrices of
    the encoder's last layer, near `mean norm * (relative inverse training rate)^α`; their sum stays
    the number of tasks. The norms are those of the whole accumulated, distributed batch. The model
    holds the weights and the first batch's losses as buffers, saved with it. Costs a backward pass
    through the heads and the last layer for each task.

    Logs as `UncertaintyWeighting` does. Evaluation is plain.

    Args:
        alpha: α, at least 0: how hard the tasks are held to one pace; more for tasks that differ
            more. The paper takes 0.12 to 3.
        lr: of the weights, above 0.

    Raises:
        ValueError: an option out of its range; a model that is sharded, or whose last layer is
            frozen.

    Paper: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks" (https://arxiv.org/abs/1711.02257), algorithm 1. Differs: as
    `losses.multitask.gradnorm_weights` says.
    """

    balance = "gradnorm"

    def __init__(self, alpha: float = 1.5, lr: float = 0.025):
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"alpha is {alpha}; it must be at least 0")
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr is {lr}; it must be above 0")
        self.alpha, self.lr = alpha, lr
        self._totals: Tensor | None = None  # by task: gradient, sum and count, of a step so far

    @property
    def weights(self) -> Mapping[str, float]:
        """0 for what is only logged."""
        return logged_only(self.tasks)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Those of the plain terms, also for the weighted ones."""
        return with_weighted(super().counts(batch))

    def passes(self, model: nn.Module, module: nn.Module, batch: Batch) -> Iterator[Terms]:
        """One, of a model that is whole."""
        refuse_shards(self, model, module)
        yield from super().passes(model, module, batch)

    def weighed(self, module: Any, plain: Terms, outputs: MultitaskOutput) -> Terms:
        """Plain, weighted, and the weights; the gradients of the shared layer are set aside."""
        layer = last_layer(module)
        pieces = torch.stack([_with_gradient(term, layer) for term in plain.values()])
        self._totals = pieces if self._totals is None else self._totals + pieces
        factors = module.task_weights.clone()
        weighted = {
            name: LossSum(factor * term.sum, term.count)
            for (name, term), factor in zip(plain.items(), factors, strict=True)
        }
        return logged(plain, weighted, factors)

    def gradients_ready(self, module: Any, mean: Mean) -> None:
        """Move the weights, for the next step; where a number is not finite they stay."""
        assert self._totals is not None
        # means over processes: the division below takes the number of processes out again
        totals, self._totals = mean(self._totals), None
        counts = totals[:, -1]
        losses, norms = (
            torch.where(counts > 0, value / counts.clamp(min=1e-30), 0)
            for value in (totals[:, -2], totals[:, :-2].norm(dim=1))
        )
        if not bool(totals.isfinite().all()):
            return
        initial = module.initial_losses
        initial.copy_(torch.where((initial == 0) & (counts > 0), losses, initial))
        known = torch.where(initial > 0, initial, 1)
        moved = gradnorm_weights(module.task_weights, norms, losses, known, self.alpha, self.lr)
        module.task_weights.copy_(moved)


class PCGrad(Multitask):
    """Where two tasks' gradients conflict, each loses its part along the other.

    For the encoder's parameters; each head has its own task's gradient alone. The gradients are
    those of the whole accumulated, distributed batch, and the order in which the others are looked
    at is a function of (seed, step). Each micro-batch is cut by task, so that every
    row goes forward and back once; one gradient of the encoder for each task, in fp32, is held in
    memory. Evaluation is plain.

    Args:
        seed: of the orders.
        weights: by task, as of `Multitask`; before the projections.

    Raises:
        ValueError: as of `Multitask`; a model that is sharded.

    Paper: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning"
    (https://arxiv.org/abs/2001.06782), algorithm 1; no difference.
    """

    num_passes = 2  # one for each task, of whom bind() knows the number

    def __init__(self, seed: int = 0, weights: Mapping[str, float] | None = None):
        super().__init__(weights)
        self.seed = seed
        self._gradients: dict[str, Tensor] = {}  # of the encoder, by task, of a step so far
        self._open: str | None = None  # whose gradient the encoder holds

    def bind(self, module: nn.Module) -> None:
        """One pass for each task."""
        super().bind(module)
        self.num_passes = len(self.tasks)

    def passes(self, model: nn.Module, module: Any, batch: Batch) -> Iterator[Terms]:
        """One task's rows after the other; the gradient that each leaves is set aside."""
        refuse_shards(self, model, module)
        # processes are averaged when all is there, not by DDP
        no_sync = getattr(model, "no_sync", nullcontext)
        rows = module.rows_of(batch.get("task"), next(iter(batch.values())))
        for name in self.tasks:
            self._set_aside(module)
            self._open = name
            if len(rows[name]):
                own = {key: value.index_select(0, rows[name]) for key, value in batch.items()}
                with no_sync():
                    terms, _ = self.terms(model, module, own, False)
                yield terms
            else:
                yield self._nothing(batch)

    def gradients_ready(self, module: Any, mean: Mean) -> None:
        """Average over the processes, project, and give the encoder the sum."""
        self._set_aside(module)
        encoder = _trained(module.encoder)
        others = [p for p in _trained(module) if not any(p is own for own in encoder)]
        _give(others, mean(_flat_gradient(others)))
        gradients = [mean(self._gradients[name]) for name in self.tasks]
        self._gradients = {}
        products = torch.stack(
            [torch.stack([torch.dot(one, other) for other in gradients]) for one in gradients]
        )
        orders = pcgrad_orders(len(self.tasks), self.seed, self.step)
        coefficients = pcgrad_coefficients(products, orders).tolist()
        combined = torch.zeros_like(gradients[0])
        for gradient, coefficient in zip(gradients, coefficients, strict=True):
            combined.add_(gradient, alpha=coefficient)
        _give(encoder, combined)

    def _set_aside(self, module: Any) -> None:
        """Take the gradient of the pass before out of the encoder."""
        if self._open is None:
            return
        encoder = _trained(module.encoder)
        gradient = _flat_gradient(encoder)
        known = self._gradients.get(self._open)
        self._gradients[self._open] = gradient if known is None else known.add_(gradient)
        self._open = None
        for parameter in encoder:
            parameter.grad = None

    def _nothing(self, batch: Batch) -> dict[str, LossSum]:
        """The terms of no rows, which can be differentiated too."""
        device = next(iter(batch.values())).device
        zero = torch.zeros((), device=device, requires_grad=True)
        return {name: LossSum(zero * 1, zero.detach()) for name in self.tasks}


def objective_for(model: MultitaskModel) -> Multitask:
    """The objective that trains a model with what it holds to weigh its tasks."""
    kinds = {"uncertainty": UncertaintyWeighting, "gradnorm": GradNorm}
    return kinds.get(model.config.balance or "", Multitask)()


def refuse_shards(objective: Multitask, *models: Any) -> None:
    """Raise ValueError where a process does not hold whole gradients: FSDP, DeepSpeed."""
    for model in models:
        is_engine = hasattr(model, "zero_optimization_stage")
        is_wrapped = isinstance(model, FullyShardedDataParallel | FSDPModule)
        if is_engine or is_wrapped or any(map(_is_shard, model.parameters())):
            raise ValueError(
                f"{type(objective).__name__} needs whole gradients, and {type(model).__name__} is "
                "sharded (FSDP, DeepSpeed): train with DDP, or weigh with UncertaintyWeighting"
            )


def last_layer(module: Any) -> list[nn.Parameter]:
    """The trained matrices of the encoder's last layer; raises ValueError if there are none."""
    places = named_places(module)
    found = [
        parameter
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.dim() > 1
        if places[name].part != "head" and places[name].distance == 1
    ]
    if not found:
        raise ValueError(
            f"GradNorm compares gradients of the last layer of {type(module.encoder).__name__}, "
            "and it has no matrix that is trained"
        )
    return found


def _with_gradient(term: LossSum, layer: list[nn.Parameter]) -> Tensor:
    """A sum's gradient by the layer, with the sum and its count behind it, in one row."""
    # as a forward pass under autocast called this, where a backward pass does not belong
    with torch.autocast(term.sum.device.type, enabled=False):
        gradients = torch.autograd.grad(term.sum, layer, retain_graph=True)
    last = torch.stack([term.sum.detach().float(), term.count.detach().float()])
    return torch.cat([*(gradient.flatten().float() for gradient in gradients), last])


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _flat_gradient(parameters: list[nn.Parameter]) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
    )


def _give(parameters: list[nn.Parameter], flat: Tensor) -> None:
    """Make the pieces of a flat gradient those of the parameters."""
    pieces = flat.split([parameter.numel() for parameter in parameters])
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)


def _is_shard(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")
