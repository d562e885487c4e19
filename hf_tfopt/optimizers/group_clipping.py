"""Gradients shortened group by group, unit by unit, or number by number.

What is not finite is left as it is, so that whoever looks for it finds it. Nothing is read back
from a device. DTensors are scaled shard by shard, by what their whole tensors ask for.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from hf_tfopt.optimizers.foreach import foreach_mul
from hf_tfopt.optimizers.sharding import local, norm, whole_norms


@torch.no_grad()
def clip_groups(
    gradients: Sequence[Tensor | None], members: Sequence[int], norms: Tensor, max_norms: Tensor
) -> Tensor:
    """Shorten each group of gradients: `g *= min(1, max_norm / norm)`.

    Args:
        gradients: of all groups; None is passed over.
        members: the group of each gradient, by its number.
        norms: ‖g‖ of each group as one vector [groups]; a group whose norm is not finite stays.
        max_norms: above 0, infinite for a group that is not to be shortened [groups].

    Returns:
        1 for each group that was shortened, else 0: [groups].
    """
    is_longer = (norms > max_norms) & norms.isfinite()
    factors = torch.where(is_longer, max_norms / norms, 1.0)
    shards: dict[tuple[int, torch.device], list[Tensor]] = {}
    for gradient, member in zip(gradients, members, strict=True):
        if gradient is not None:
            shards.setdefault((member, gradient.device), []).append(local(gradient))
    if is_at_hand(factors):  # most are 1
        read = factors.tolist()
        for (group, _), tensors in shards.items():
            if read[group] < 1:
                foreach_mul(tensors, read[group])
    else:
        of_groups = factors.unbind()
        for (group, device), tensors in shards.items():
            foreach_mul(tensors, of_groups[group].to(device))
    return is_longer.float()


@torch.no_grad()
def clip_values(gradients: Sequence[Tensor], max_value: float) -> Tensor:
    """`g.clamp_(-max_value, max_value)`, but of a tensor with a number that is not finite.

    Args:
        gradients: tensors; of a DTensor each process looks at its own shard.
        max_value: above 0.

    Returns:
        1 for each tensor that held a larger number, else 0: [tensors].
    """
    if not gradients:
        return torch.zeros(0)
    shards = [local(gradient) for gradient in gradients]
    largest = torch.stack(on_one_device([_largest(shard) for shard in shards]))
    is_over = (largest > max_value) & largest.isfinite()
    if is_at_hand(is_over):
        for shard, over in zip(shards, is_over.tolist(), strict=True):
            if over:
                shard.clamp_(-max_value, max_value)
    else:
        bounds = torch.where(is_over, max_value, math.inf)
        for shard, bound in zip(shards, bounds.unbind(), strict=True):
            bound = bound.to(shard.device)
            shard.clamp_(-bound, bound)
    return whole_norms(is_over.float().unsqueeze(0), gradients).squeeze(0).sign()


def is_at_hand(tensor: Tensor) -> bool:
    """Whether a number is read without waiting for a device."""
    return tensor.device.type == "cpu"


def on_one_device(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Small tensors beside the first; the parameters of a model may lie on several devices."""
    return [tensor.to(tensors[0].device) for tensor in tensors]


def _largest(shard: Tensor) -> Tensor:
    if not shard.numel():  # this process has no part of the tensor
        return torch.zeros((), device=shard.device)
    lowest, highest = torch.aminmax(shard)  # on a CPU eight times as fast as the norm
    return torch.maximum(-lowest, highest).float()


@torch.no_grad()
def clip_units(
    parameters: Sequence[Tensor], unit_dims: Sequence[int | None], clipping: float, eps: float
) -> Tensor:
    """Shorten each unit's gradient: `g_i *= min(1, clipping * max(‖w_i‖, eps) / ‖g_i‖)`.

    Args:
        parameters: with gradients.
        unit_dims: of each parameter the dimension that counts its units, as the outputs of a linear
            map; None: all of it is one unit.
        clipping: above 0.
        eps: the least ‖w_i‖ that is reckoned with.

    Returns:
        The share of all units that was shortened: [].
    """
    if not parameters:
        return torch.zeros(())
    is_shorter: list[Tensor] = []
    for parameter, (gradient, weight) in zip(
        parameters, _unit_norms(parameters, unit_dims), strict=True
    ):
        assert parameter.grad is not None
        longest = clipping * weight.clamp(min=eps)
        is_longer = (gradient > longest) & gradient.isfinite()
        factors = torch.where(is_longer, longest / gradient, 1.0)
        if not is_at_hand(factors) or bool(is_longer.any()):
            local(parameter.grad).mul_(factors)
        is_shorter.append(is_longer)
    return _share(is_shorter, parameters, unit_dims)


def _unit_norms(
    parameters: Sequence[Tensor], unit_dims: Sequence[int | None]
) -> list[tuple[Tensor, Tensor]]:
    """‖g_i‖ and ‖w_i‖ of this process's units, in fp32, to be multiplied with their tensors."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    single: list[int] = []
    for number, (parameter, dim) in enumerate(zip(parameters, unit_dims, strict=True)):
        if dim is None:
            single.append(number)
            continue
        pair = torch.stack([_norms_along(t, dim) for t in _pair(parameter)])
        gradient, weight = _joined(pair, parameter, dim).unbind()
        found[number] = gradient, weight
    if single:  # all of them with one message
        pairs = [
            torch.stack([norm(local(t)).float() for t in _pair(parameters[n])]) for n in single
        ]
        joined = torch.stack(on_one_device(pairs), 1)
        joined = whole_norms(joined, [parameters[n] for n in single])
        for number, pair in zip(single, joined.unbind(1), strict=True):
            gradient, weight = pair.to(parameters[number].device).unbind()
            found[number] = gradient, weight
    return [found[number] for number in range(len(parameters))]


def _pair(parameter: Tensor) -> tuple[Tensor, Tensor]:
    assert parameter.grad is not None
    return parameter.grad, parameter


def _norms_along(tensor: Tensor, dim: int) -> Tensor:
    others = [other for other in range(tensor.ndim) if other != dim]
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return torch.linalg.vector_norm(local(tensor), dim=others, keepdim=True, dtype=dtype)


def _joined(norms: Tensor, parameter: Tensor, dim: int) -> Tensor:
    """Norms of whole units, where other processes hold the rest of each."""
    if not isinstance(parameter, DTensor):
        return norms
    for mesh_dim, placement in enumerate(parameter.placements):
        if placement.is_shard() and not placement.is_shard(dim):
            squares = norms.square()
            dist.all_reduce(squares, group=parameter.device_mesh.get_group(mesh_dim))
            norms = squares.sqrt()
    return norms


def _share(
    is_shorter: Sequence[Tensor], parameters: Sequence[Tensor], unit_dims: Sequence[int | None]
) -> Tensor:
    """Of all units; one that several processes have a part of is counted once."""
    device = is_shorter[0].device
    clipped = torch.stack(on_one_device([flags.sum() for flags in is_shorter])).float()
    seen = torch.tensor([float(flags.numel()) for flags in is_shorter], device=device)
    # squares are what whole_norms adds up
    clipped, seen = whole_norms(torch.stack([clipped, seen]).sqrt(), parameters).square()
    pairs = zip(parameters, unit_dims, strict=True)
    sizes = torch.tensor([1.0 if d is None else p.shape[d] for p, d in pairs], device=device)
    return (clipped / seen * sizes).sum() / sizes.sum()
