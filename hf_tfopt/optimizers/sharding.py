"""Whole tensors and their norms, also of those whose parts are on several devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

PIECE = 2**20  # numbers; the squares of 23 million, added up at once in fp32, are off by 4e-5


def norm(tensor: Tensor) -> Tensor:
    """‖x‖ of a tensor of any shape, in fp32 or wider: [] on its device, nothing read back."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.is_cpu
    if is_plain and tensor.is_contiguous() and not tensor.is_complex():
        return _norm_by_pieces(tensor.detach().view(-1), dtype)
    if tensor.ndim > 1:  # row by row: a CPU reduces rows side by side, but a whole on one thread
        tensor = torch.linalg.vector_norm(tensor, dim=-1, dtype=dtype)
    return torch.linalg.vector_norm(tensor, dtype=dtype)


def _norm_by_pieces(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """‖x‖ by dot products, which read memory as fast as it comes; each adds up in `dtype`."""
    wide = (piece.to(dtype) for piece in flat.split(PIECE))
    squares = [torch.dot(piece, piece) for piece in wide]
    if len(squares) == 1:
        return squares[0].sqrt()
    return torch.stack(squares).sum(dtype=torch.float64).sqrt().to(dtype)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A DTensor gathered from all of its processes; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_as(pattern: Tensor, tensor: Tensor) -> Tensor:
    """A tensor that every process has whole, divided as the pattern is; without communication."""
    if not isinstance(pattern, DTensor):
        return tensor
    mesh = pattern.device_mesh
    copies = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(placements=pattern.placements)


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


def check_whole(name: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError for a parameter group that an engine has joined into flat tensors."""
    names, params = group.get("param_names"), group["params"]
    is_flat = names is not None and len(names) != len(params)
    if is_flat or any(type(p).__name__ == "FlatParameter" for p in params):
        raise ValueError(
            f"{name} needs each parameter as a tensor of its own, but an engine has joined them "
            "(DeepSpeed ZeRO, FSDP1): use DDP or FSDP2, or another optimizer"
        )
