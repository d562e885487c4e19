"""Norms of whole tensors, also of those whose parts are on several devices."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def norm(tensor: Tensor) -> Tensor:
    """‖x‖ of a tensor of any shape, in fp32 or wider: [] on its device, nothing read back."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if tensor.ndim > 1:  # row by row: a CPU reduces rows side by side, but a whole on one thread
        tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype)
    return torch.linalg.vector_norm(tensor, dtype=dtype)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_norms(norms: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Norms of whole tensors [k, n], from those of this process's shards of n parameters."""
    sharded: dict[Any, list[int]] = {}
    for number, parameter in enumerate(parameters):
        if isinstance(parameter, DTensor):
            key = (parameter.device_mesh, parameter.placements)
            sharded.setdefault(key, []).append(number)
    if not sharded:
        return norms
    squares = norms.square()
    for (mesh, placements), numbers in sharded.items():
        part = squares[:, numbers]
        for dim, placement in enumerate(placements):
            if placement.is_shard():
                dist.all_reduce(part, group=mesh.get_group(dim))
        squares[:, numbers] = part
    return squares.sqrt()
