"""The compiled loops of optimizers on fp32 tensors on a CPU: one call for all tensors."""

import ctypes
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from hf_tfopt.native.build import address, library
from hf_tfopt.native.threads import num_threads
from hf_tfopt.optimizers.adam_direction import AdamDirection
from hf_tfopt.optimizers.foreach import foreach_add

Scratch = dict[tuple[torch.dtype, torch.device], Tensor]
PER_THREAD = 2**16  # numbers; fewer are not worth a thread

# `Tensor` of native/optimizers.cpp
_TENSOR = np.dtype(
    [
        ("weight", "u8"),
        ("gradient", "u8"),
        ("m", "u8"),
        ("v", "u8"),
        ("size", "i8"),
        ("corrections", "f4", 2),
        ("ratio", "f8"),
    ],
    align=True,
)


class _Settings(ctypes.Structure):
    """`Settings` of native/optimizers.cpp."""

    _fields_ = (
        ("lr", ctypes.c_double),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("eps", ctypes.c_double),
        ("weight_decay", ctypes.c_double),
        ("max_ratio", ctypes.c_double),
        ("is_adaptive", ctypes.c_int32),
    )


def takes(tensor: Tensor) -> bool:
    """Whether the loops can read a tensor: a plain one in fp32, one number after the other."""
    return (
        type(tensor) in (Tensor, nn.Parameter)  # DTensor and quantized ones keep theirs elsewhere
        and tensor.is_cpu
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )


def sum_of_squares(tensors: Sequence[Tensor]) -> float | None:
    """`sum((t.double() ** 2).sum() for t in tensors)`; None where it is not to be had.

    Up to 8,192 squares are added up in fp32, and these sums in fp64.
    """
    compiled = _loops_for(tensors)
    if compiled is None:
        return None
    places = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.uint64)
    sizes = np.array([tensor.numel() for tensor in tensors], dtype=np.int64)
    compiled.tfopt_sum_of_squares.restype = ctypes.c_double
    total: float = compiled.tfopt_sum_of_squares(
        address(places, "u8"),
        address(sizes, "i8"),
        ctypes.c_int64(len(sizes)),
        num_threads(int(sizes.sum()), PER_THREAD),
    )
    return total


def lamb_step(
    parameters: Sequence[Tensor],
    states: Sequence[dict[str, Tensor]],
    adam: AdamDirection,
    lr: float,
    max_trust_ratio: float | None,
    is_adaptive: bool,
    scratch: Scratch,
) -> bool:
    """LAMB's step of all tensors, see `lamb.lamb_update`; False, with nothing done, where not."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    averages = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq")]
    groups = (parameters, gradients, *averages)
    compiled = _loops_for(chain.from_iterable(groups))
    if compiled is None:
        return False
    steps = [state["step"] for state in states]
    foreach_add(steps, 1)
    tensors = np.zeros(len(parameters), dtype=_TENSOR)
    for name, group in zip(("weight", "gradient", "m", "v"), groups, strict=True):
        tensors[name] = [tensor.data_ptr() for tensor in group]
    tensors["size"] = [parameter.numel() for parameter in parameters]
    tensors["corrections"] = _corrections(steps, adam)
    threads = num_threads(int(tensors["size"].sum()), PER_THREAD)
    compiled.tfopt_lamb_room.restype = ctypes.c_int64
    room = compiled.tfopt_lamb_room(ctypes.c_int64(int(tensors["size"].max())), threads)
    memory = room_in(scratch, room, averages[0][0])
    cap = math.inf if max_trust_ratio is None else max_trust_ratio
    settings = _Settings(lr, *adam.betas, adam.eps, adam.inner_decay, cap, is_adaptive)
    compiled.tfopt_lamb_step(
        ctypes.c_void_p(tensors.ctypes.data),
        ctypes.c_int64(len(tensors)),
        ctypes.byref(settings),
        ctypes.c_void_p(memory.data_ptr()),
        threads,
    )
    increment_version([*parameters, *averages[0], *averages[1]])  # autograd sees no such writing
    ratios = torch.from_numpy(tensors["ratio"].astype(np.float32)).unbind()
    for state, ratio in zip(states, ratios, strict=True):
        state["trust_ratio"] = ratio
    return True


def room_in(scratch: Scratch, size: int, like: Tensor) -> Tensor:
    """Memory for `size` numbers, which is kept: new memory costs a page fault every 4 kB."""
    kind = (like.dtype, like.device)
    if kind not in scratch or scratch[kind].numel() < size:
        scratch[kind] = torch.empty(size, dtype=like.dtype, device=like.device)
    return scratch[kind]


def _loops_for(tensors: Iterable[Tensor]) -> ctypes.CDLL | None:
    """The library, if there is one and it can read all of these."""
    return library("optimizers") if all(takes(tensor) for tensor in tensors) else None


def _corrections(steps: Sequence[Tensor], adam: AdamDirection) -> Any:
    """1 / (1 - βᵗ) of every tensor, for both averages: [tensors, 2]."""
    if not adam.bias_correction:
        return 1.0
    taken = torch.stack(list(steps)).double().numpy()[:, None]
    return 1 / (1 - np.array(adam.betas) ** taken)
