"""A copy of what is trained, in memory, that can be put back."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from hf_tfopt.optimizers.sharding import local

# What the schedule and other callbacks write goes on with the steps.
KEPT = (
    *("params", "param_names", "name"),
    *("lr", "initial_lr", "max_lr", "min_lr", "weight_decay"),
)


class Snapshot:
    """Weights and optimizer state as they were, each process its own shards.

    Learning rates and weight decay are not part of it: they go on with the steps.

    Args:
        is_on_cpu: hold the copies in pinned memory of the host instead of on the device.
    """

    def __init__(self, is_on_cpu: bool = True):
        self.is_on_cpu = is_on_cpu
        self.is_taken = False
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._state: list[tuple[Tensor, dict[str, Any]]] = []
        self._groups: list[dict[str, Any]] = []

    @torch.no_grad()
    def take(self, tensors: Iterable[Tensor], optimizer: Any) -> None:
        """Copy tensors and the state of an optimizer; nothing waits for the device."""
        old = dict(zip(map(id, self._tensors), self._copies, strict=True))
        known = {id(parameter): state for parameter, state in self._state}
        self._tensors = list(tensors)
        self._copies = [
            copied(tensor, old.get(id(tensor)), self.is_on_cpu) for tensor in self._tensors
        ]
        self._state = [
            (tensor, self._copied_state(optimizer.state.get(tensor, {}), known.get(id(tensor), {})))
            for tensor in _optimized(optimizer)
        ]
        self._groups = [extras(group) for group in optimizer.param_groups]
        self.is_taken = True

    @torch.no_grad()
    def put_back(self, optimizer: Any) -> None:
        """Write everything back in place."""
        assert self.is_taken
        for tensor, copy in zip(self._tensors, self._copies, strict=True):
            local(tensor).copy_(local(copy), non_blocking=True)
        for parameter, saved in self._state:
            _put_back_state(optimizer, parameter, saved)
        for group, saved in zip(optimizer.param_groups, self._groups, strict=True):
            put_extras(group, saved)

    def _copied_state(self, state: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        return {
            key: copied(value, known.get(key), self.is_on_cpu)
            if isinstance(value, Tensor)
            else deepcopy(value)
            for key, value in state.items()
        }


def copied(tensor: Tensor, known: Tensor | None, is_on_cpu: bool) -> Tensor:
    """A copy of this process's shard, in the memory of the one before it where that fits.

    Args:
        tensor: to copy; nothing waits for its device.
        known: an earlier copy, which may be written over.
        is_on_cpu: whether a new one lies in pinned memory of the host.
    """
    tensor = local(tensor.detach())
    if known is None or (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
        # quantized states are tensors of a kind of their own, which only clone() knows
        if not is_on_cpu or tensor.device.type != "cuda" or type(tensor) is not Tensor:
            return tensor.clone()
        known = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return known.copy_(tensor, non_blocking=True)


def extras(group: dict[str, Any]) -> dict[str, Any]:
    """What an optimizer counts in a group (Schedule-Free's k ...), copied."""
    return {key: deepcopy(value) for key, value in group.items() if key not in KEPT}


@torch.no_grad()
def put_extras(group: dict[str, Any], saved: dict[str, Any]) -> None:
    """Write what `extras` has copied back, into a tensor's own memory."""
    for key, value in saved.items():
        now = group.get(key)
        if isinstance(now, Tensor) and isinstance(value, Tensor):
            now.copy_(value)
        else:
            group[key] = deepcopy(value)


def trained_tensors(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """What a run changes: weights that are trained now or by the optimizer, and buffers."""
    weights = [p for p in model.parameters() if p.requires_grad]
    found = {id(tensor): tensor for tensor in [*weights, *_optimized(optimizer), *buffers(model)]}
    return list(found.values())


def buffers(model: nn.Module) -> list[Tensor]:
    """The buffers that may become non-finite."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _optimized(optimizer: Any) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _put_back_state(optimizer: Any, parameter: Tensor, saved: dict[str, Any]) -> None:
    if not saved:
        optimizer.state.pop(parameter, None)
        return
    state: dict[str, Any] = optimizer.state[parameter]
    for key in [key for key in state if key not in saved]:
        del state[key]
    for key, value in saved.items():
        now = state.get(key)
        if isinstance(value, Tensor) and isinstance(now, Tensor):
            local(now).copy_(value, non_blocking=True)  # a copy of a DTensor is of its shard
        else:
            state[key] = deepcopy(value)
