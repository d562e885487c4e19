"""Whether losses, gradients and weights are finite, agreed on by all processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_tfopt.callbacks.blocks import Groups
from hf_tfopt.callbacks.snapshot import buffers
from hf_tfopt.optimizers.sharding import norm
from hf_tfopt.places import named_places


@dataclass(frozen=True)
class Vitals:
    """A step before its update, the same numbers on every process.

    Args:
        loss: what the host logs for the step, without micro-batches whose loss is not finite; None
            where it was not seen.
        num_bad_losses: micro-batches, of all processes, whose loss is not finite.
        norms: ‖gradient‖ of each block.
        scale: what fp16 has multiplied the loss with; None without a scaler.
    """

    loss: float | None
    num_bad_losses: int
    norms: tuple[float, ...]
    scale: float | None = None

    @property
    def gradient_norm(self) -> float:
        """‖gradient‖ of all blocks."""
        return math.hypot(*self.norms)


def read_vitals(losses: Sequence[Tensor], norms: Tensor, scale: Tensor | None = None) -> Vitals:
    """Read back the numbers of a step, added up over all processes: the one wait for the device.

    Args:
        losses: of this process's micro-batches; their sum is the loss of the step.
        norms: ‖gradient‖ of each block, of all processes' gradients: [blocks].
        scale: see `loss_scale`.
    """
    sums = torch.zeros(2, device=norms.device)
    if losses:
        every = torch.stack([loss.detach().float().reshape(()) for loss in losses])
        is_bad = ~every.isfinite()
        sums = torch.stack([every.masked_fill(is_bad, 0.0).sum(), is_bad.sum()]).to(norms.device)
    scales = torch.empty(0, device=norms.device) if scale is None else scale.reshape(1)
    numbers = mean_over_processes(torch.cat([sums, norms.float(), scales])).tolist()
    loss, num_bad, means = numbers[0], numbers[1], numbers[2 : 2 + norms.numel()]
    return Vitals(
        loss if losses else None,
        round(num_bad * num_processes()),
        tuple(means),
        None if scale is None else numbers[-1],
    )


def mean_over_processes(numbers: Tensor) -> Tensor:
    """The mean of each number, which is NaN or infinite if it is so on any process."""
    if num_processes() > 1:
        dist.all_reduce(numbers)
        numbers = numbers / num_processes()
    return numbers


def gathered(fact: Any) -> list[Any]:
    """A JSON value of each process, known to all of them."""
    if num_processes() == 1:
        return [fact]
    facts: list[Any] = [None] * num_processes()
    dist.all_gather_object(facts, fact)
    return facts


def num_processes() -> int:
    """Those that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def loss_scale(optimizer: Any, device: torch.device) -> Tensor | None:
    """What fp16 has multiplied the loss with, not read back; None without a scaler."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return None
    return scaler.scale(torch.ones((), device=device))


class Body:
    """The weights of a model by block, trained or not, and its buffers."""

    def __init__(self, model: nn.Module):
        places = named_places(model)
        names = tuple(dict.fromkeys(place.label for place in places.values()))
        own = [(name, p) for name, p in model.named_parameters() if p.is_floating_point()]
        members = tuple(names.index(places[name].label) for name, _ in own)
        self.groups = Groups(names, tuple(parameter for _, parameter in own), members)
        # a mask may hold -inf on purpose
        self._buffers = [b for b in buffers(model) if bool(b.isfinite().all())]

    def gradient_norms(self) -> Tensor:
        """‖gradient‖ of each block [blocks]; nothing is read back."""
        norms = self.groups.norms(self.groups.gradients())
        return norms.to(self.groups.parameters[0].device)

    def bad_blocks(self, norms: Sequence[float]) -> list[str]:
        """The blocks whose norm is not finite."""
        pairs = zip(self.groups.names, norms, strict=True)
        return [name for name, value in pairs if not math.isfinite(value)]

    @torch.no_grad()
    def bad_weights(self) -> list[str]:
        """The blocks with a weight that is not finite on any process; waits for the device."""
        norms = self.groups.norms([parameter.detach() for parameter in self.groups.parameters])
        parts = [norms, *(norm(buffer).reshape(1).to(norms.device) for buffer in self._buffers)]
        device = self.groups.parameters[0].device
        values = mean_over_processes(torch.cat(parts).to(device)).tolist()
        blocks = self.bad_blocks(values[: norms.numel()])
        are_bad = any(not math.isfinite(value) for value in values[norms.numel() :])
        return [*blocks, "buffers"] if are_bad else blocks
