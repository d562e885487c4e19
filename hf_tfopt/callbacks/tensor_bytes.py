"""The bytes of tensors: those of this process, each once."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

MIB = 2**20


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one is made of: a DTensor's shard, a quantised one's parts."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    wrapped: Any = tensor
    for name in wrapped.__tensor_flatten__()[0]:
        part = getattr(wrapped, name)
        if isinstance(part, Tensor):  # a DTensor's mesh is named among its parts
            yield from plain_tensors(part)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them; one that is given twice counts once."""
    parts = {id(part): part for tensor in tensors for part in plain_tensors(tensor)}
    return sum(part.numel() * part.element_size() for part in parts.values())


def weights_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, tied ones once."""
    return [*model.parameters(), *model.buffers()]


def gradients_of(model: nn.Module) -> list[Tensor]:
    """Those that are there."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def state_of(optimizer: Any) -> list[Tensor]:
    """All tensors of an optimizer's state, in whatever wrappers the host has put it."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return list(_tensors_in(optimizer.state))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    parts: Any = value.values() if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
    if isinstance(value, Mapping | list | tuple):
        for part in parts:
            yield from _tensors_in(part)
