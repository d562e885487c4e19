"""AdamW and Lion with states of 8 or 4 bits a number: bitsandbytes' and torchao's."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hf_tfopt.optimizers.adamw import as_groups
from hf_tfopt.optimizers.checks import check_adam, check_count
from hf_tfopt.registry import Lazy

_BITSANDBYTES_ADAMW = Lazy("bitsandbytes.optim:AdamW", extra="quantization")
_BITSANDBYTES_LION = Lazy("bitsandbytes.optim:Lion", extra="quantization")
_TORCHAO_8BIT = Lazy("torchao.optim:AdamW8bit", extra="torchao")
_TORCHAO_4BIT = Lazy("torchao.optim:AdamW4bit", extra="torchao")


def adamw_8bit(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    min_8bit_size: int = 4096,
    embedding_bits: int = 32,
) -> torch.optim.Optimizer:
    """Build bitsandbytes' AdamW: both averages in 8 bits a number, with a scale for each 256.

    θ ← θ - lr·λ·θ - lr·m̂ / (√v̂ + ε), m and v being rounded after each step. A tensor's state is
    in fp32 if it has fewer than `min_8bit_size` numbers, and in groups whose `role` is
    "embeddings", as the paper advises; a group's own `optim_bits` (8 or 32) goes first. On CUDA
    bitsandbytes waits for the device after each tensor.

    Args:
        params: tensors, or groups such as `param_groups` gives; whole, not sharded by FSDP2.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        min_8bit_size: the fewest numbers of a tensor whose state has 8 bits, above 0.
        embedding_bits: of the state of embedding tables, 8 or 32.

    Raises:
        ValueError: for a number outside its range.
        ImportError: without bitsandbytes.

    Paper: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization,
        https://arxiv.org/abs/2110.02861.
    """
    check_adam(lr, weight_decay, betas, eps)
    return _by_group(_BITSANDBYTES_ADAMW.load())(
        _with_bits(params, embedding_bits),
        lr=lr,
        weight_decay=weight_decay,
        betas=tuple(betas),
        eps=eps,
        optim_bits=8,
        min_8bit_size=_checked_size(min_8bit_size),
    )


def lion_8bit(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    min_8bit_size: int = 4096,
    embedding_bits: int = 32,
) -> torch.optim.Optimizer:
    """Build bitsandbytes' Lion: the momentum in 8 bits a number, with a scale for each 256.

    θ ← θ - lr·λ·θ - lr·sign(β₁·m + (1 - β₁)·g), then m ← β₂·m + (1 - β₂)·g, rounded. Which tensors
    keep fp32: see `adamw_8bit`.

    Args:
        params: tensors, or groups such as `param_groups` gives; whole, not sharded by FSDP2.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        betas: β₁, the share of the momentum in the direction, and β₂, in itself; in [0, 1).
        min_8bit_size: the fewest numbers of a tensor whose state has 8 bits, above 0.
        embedding_bits: of the state of embedding tables, 8 or 32.

    Raises:
        ValueError: for a number outside its range.
        ImportError: without bitsandbytes.

    Paper: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms,
        https://arxiv.org/abs/2302.06675, algorithm 2, with the rounding of `adamw_8bit`.
    """
    check_adam(lr, weight_decay, betas)
    return _by_group(_BITSANDBYTES_LION.load())(
        _with_bits(params, embedding_bits),
        lr=lr,
        weight_decay=weight_decay,
        betas=tuple(betas),
        optim_bits=8,
        min_8bit_size=_checked_size(min_8bit_size),
    )


def adamw_8bit_torchao(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    stochastic_rounding: bool = False,
) -> torch.optim.Optimizer:
    """Build torchao's AdamW: both averages in 8 bits a number, also of sharded parameters (FSDP2).

    θ ← θ - lr·λ·θ - lr·m̂ / (√v̂ + ε), m and v being rounded after each step, with a scale for each
    256. Tensors of fewer than 4096 numbers, or of no multiple of 256, keep a state in their own
    precision. The step is compiled (which needs a C++ compiler on a CPU), and again for each new
    weight_decay or betas of a group: leave those as they are; the lr is a tensor in each group.
    States are tensors of a class of torchao's, which `torch.load(weights_only=True)` knows once
    torchao is imported, as it is by building the optimizer.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        stochastic_rounding: of bf16 parameters, so that small steps are not lost but on average.

    Raises:
        ValueError: for a number outside its range.
        ImportError: without torchao.

    Paper: Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization,
        https://arxiv.org/abs/2110.02861.
    """
    return _of_torchao(_TORCHAO_8BIT, params, lr, weight_decay, betas, eps, stochastic_rounding)


def adamw_4bit(
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    stochastic_rounding: bool = False,
) -> torch.optim.Optimizer:
    """Build torchao's AdamW: both averages in 4 bits a number, with a scale for each 128.

    As `adamw_8bit_torchao`; tensors of fewer than 4096 numbers, or of no multiple of 128, keep a
    state in their own precision.

    Args:
        params: tensors, or groups such as `param_groups` gives.
        lr: learning rate of groups that have none of their own.
        weight_decay: decoupled decay λ of groups that have none of their own, 0 or above.
        betas: share of the old averages of g and of g² that each step keeps, in [0, 1).
        eps: added to √v̂, 0 or above.
        stochastic_rounding: of bf16 parameters, so that small steps are not lost but on average.

    Raises:
        ValueError: for a number outside its range.
        ImportError: without torchao.

    Paper: Li et al. 2023, Memory Efficient Optimizers with 4-bit States,
        https://arxiv.org/abs/2309.01507. Differs: as in torchao, v too has a scale for each
        block, not for each row and column.
    """
    return _of_torchao(_TORCHAO_4BIT, params, lr, weight_decay, betas, eps, stochastic_rounding)


def _of_torchao(
    optimizer: Lazy,
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    stochastic_rounding: bool,
) -> torch.optim.Optimizer:
    check_adam(lr, weight_decay, betas, eps)
    groups, _ = as_groups(params)
    return optimizer.load()(
        groups,
        lr=lr,
        weight_decay=weight_decay,
        betas=tuple(betas),
        eps=eps,
        bf16_stochastic_round=stochastic_rounding,
    )


@cache
def _by_group(optimizer: Any) -> Any:
    """The same optimizer of bitsandbytes, which asks the parameter's group for its bits.

    Its own way is a register of parameters by their `id`, one for all optimizers and for ever.
    """

    def get_config(
        self: Any, group_index: int, parameter_index: int, group: dict[str, Any]
    ) -> dict[str, Any]:
        config = optimizer.get_config(self, group_index, parameter_index, group)
        return {**config, "optim_bits": group["optim_bits"]}

    return type(optimizer.__name__, (optimizer,), {"get_config": get_config})


def _with_bits(
    params: Iterable[Tensor] | Iterable[dict[str, Any]], embedding_bits: int
) -> list[dict[str, Any]]:
    _check_bits("embedding_bits", embedding_bits)
    groups: list[dict[str, Any]] = []
    for group in as_groups(params)[0]:
        bits = embedding_bits if group.get("role") == "embeddings" else 8
        groups.append({"optim_bits": bits, **group})
        _check_bits("a group's optim_bits", groups[-1]["optim_bits"])
    return groups


def _check_bits(name: str, bits: int) -> None:
    if bits not in (8, 32):
        raise ValueError(f"{name} must be 8 or 32, got {bits!r}")


def _checked_size(min_8bit_size: int) -> int:
    check_count("min_8bit_size", min_8bit_size)
    return min_8bit_size
