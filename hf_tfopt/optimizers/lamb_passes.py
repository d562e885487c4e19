"""The two passes of LAMB over a tensor: its direction and lengths, then its step."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from hf_tfopt.optimizers.adam_direction import AdamDirection
from hf_tfopt.optimizers.kernels import takes
from hf_tfopt.optimizers.sharding import norm

PIECE = 2**19  # numbers that a CPU keeps at hand from one operation to the next


class Passes(Protocol):
    """Between the two, the lengths of a sharded tensor are added up over its processes."""

    def first(
        self, weight: Tensor, gradient: Tensor, state: Mapping[str, Tensor], direction: Tensor
    ) -> Tensor:
        """Move Adam's averages, write `AdamDirection` into `direction`; ‖θ‖ and ‖u‖: [2]."""
        ...

    def second(self, weight: Tensor, direction: Tensor, rate: Tensor) -> None:
        """θ ← θ - rate·u."""
        ...


class EagerPasses:
    """By torch's fused Adam and four more readings of the tensor, piece by piece on a CPU."""

    def __init__(self, adam: AdamDirection):
        self.adam = adam

    def first(
        self, weight: Tensor, gradient: Tensor, state: Mapping[str, Tensor], direction: Tensor
    ) -> Tensor:
        """See `Passes`."""
        tensors = [weight, gradient, state["exp_avg"], state["exp_avg_sq"], direction]
        if not all(takes(tensor) for tensor in tensors):
            self.adam.write([weight], [gradient], [state], [direction])
            return torch.stack([norm(weight), norm(direction)])
        step = self.adam.counted(state["step"].add_(1))
        pieces = zip(*(tensor.view(-1).split(PIECE) for tensor in tensors), strict=True)
        squares = [square for piece in pieces for square in self._squares(piece, step)]
        read = torch.stack(squares).tolist()
        norms = [math.sqrt(math.fsum(read[first::2])) for first in (0, 1)]
        return torch.tensor(norms, dtype=direction.dtype, device=direction.device)

    def _squares(self, piece: Sequence[Tensor], step: Tensor) -> tuple[Tensor, Tensor]:
        """‖θ‖² and ‖u‖² of a piece of θ, g, m, v and u, which is written."""
        weight, gradient, m, v, direction = piece
        weight_square = torch.dot(weight, weight)
        self.adam.write_piece(weight, gradient, m, v, direction, step)
        return weight_square, torch.dot(direction, direction)

    def second(self, weight: Tensor, direction: Tensor, rate: Tensor) -> None:
        """See `Passes`."""
        wide = weight.to(direction.dtype)
        weight.copy_(wide.addcmul_(direction, rate, value=-1.0))


class CompiledPasses:
    """By one compiled kernel each (`torch.compile`, which on a CPU needs a C++ compiler).

    They are compiled once, for tensors of any size, in some ten seconds; what is strided takes the
    eager way, see `is_compilable`.
    """

    def __init__(self, adam: AdamDirection):
        self.adam = adam
        self.eager = EagerPasses(adam)

    def first(
        self, weight: Tensor, gradient: Tensor, state: Mapping[str, Tensor], direction: Tensor
    ) -> Tensor:
        """See `Passes`."""
        if not is_compilable(weight):
            return self.eager.first(weight, gradient, state, direction)
        state["step"].add_(1)
        m, v = state["exp_avg"], state["exp_avg_sq"]
        tensors = [_flat(t) for t in (weight, gradient.contiguous(), m, v, direction)]
        return _compiled()[0](*tensors, self._numbers(state["step"], m))

    def second(self, weight: Tensor, direction: Tensor, rate: Tensor) -> None:
        """See `Passes`."""
        if not is_compilable(weight):
            return self.eager.second(weight, direction, rate)
        return _compiled()[1](_flat(weight), _flat(direction), rate)

    def _numbers(self, step: Tensor, like: Tensor) -> Tensor:
        """What the first pass multiplies with: a tensor, so that new values compile nothing."""
        (beta1, beta2), eps, decay, is_corrected = self.adam
        betas = torch.tensor([beta1, beta2], dtype=torch.float64, device=step.device)
        corrections = 1 / (1 - betas**step) if is_corrected else torch.ones_like(betas)
        values = [beta1, 1 - beta1, beta2, 1 - beta2, eps, decay]
        constants = torch.tensor(values, dtype=torch.float64, device=step.device)
        return torch.cat([constants, corrections]).to(like.device, like.dtype)


def first_pass(
    weight: Tensor, gradient: Tensor, m: Tensor, v: Tensor, direction: Tensor, numbers: Tensor
) -> Tensor:
    """`CompiledPasses.first` on flat tensors, in plain arithmetic for the compiler.

    One loop: sums over rows would make a second one. The compiler adds up in cascades, so that a
    long sum in fp32 keeps its digits.
    """
    g, wide = gradient.to(m.dtype), weight.to(m.dtype)
    m_now = m * numbers[0] + g * numbers[1]
    v_now = v * numbers[2] + g * g * numbers[3]
    u = m_now * numbers[6] / ((v_now * numbers[7]).sqrt() + numbers[4]) + wide * numbers[5]
    m.copy_(m_now)
    v.copy_(v_now)
    direction.copy_(u)
    return torch.stack([(wide * wide).sum(), (u * u).sum()]).sqrt()


def second_pass(weight: Tensor, direction: Tensor, rate: Tensor) -> None:
    """`CompiledPasses.second` on flat tensors."""
    weight.copy_(weight.to(direction.dtype) - rate * direction)


def is_compilable(weight: Tensor) -> bool:
    """Whether a tensor is one piece of memory; one number alone would compile the passes anew."""
    return weight.is_contiguous() and weight.numel() > 1


@cache
def _compiled() -> tuple[Any, Any]:
    first: Any = torch.compile(first_pass, dynamic=True, fullgraph=True)
    second: Any = torch.compile(second_pass, dynamic=True, fullgraph=True)
    return first, second


def _flat(tensor: Tensor) -> Tensor:
    """All numbers in a row, in the same memory; no view, whose shape would be compiled in."""
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return plain.set_(tensor.untyped_storage(), tensor.storage_offset(), (tensor.numel(),), (1,))
