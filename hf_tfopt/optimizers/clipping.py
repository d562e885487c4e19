"""The global norm of the gradients, and gradients no longer than it may be."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_ as torchs_clip_grad_norm

from hf_tfopt.optimizers.checks import check_positive
from hf_tfopt.optimizers.foreach import foreach_mul
from hf_tfopt.optimizers.kernels import sum_of_squares
from hf_tfopt.optimizers.sharding import norm


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float = math.inf) -> Tensor:
    """Shorten the gradients to a global norm of `max_norm` if theirs is larger; returns theirs.

    Equals `torch.nn.utils.clip_grad_norm_`. That one multiplies every gradient in every step, by 1
    where nothing is to be shortened; on a CPU, where it costs nothing to look at the norm, this one
    only reads them then. Elsewhere it is torch's.

    Args:
        parameters: those without a gradient are left out.
        max_norm: above 0; infinite: only the norm.

    Returns:
        ‖g‖ of all gradients as one vector, before: [] in fp32 or wider.

    Raises:
        ValueError: a `max_norm` that is not above 0.
    """
    if max_norm != math.inf:
        check_positive("max_norm", max_norm)
    trained = list(parameters)
    gradients = [gradient for p in trained if (gradient := p.grad) is not None]
    if not gradients:
        return torch.zeros(())
    total = _length(gradients)
    if total is None:
        return torchs_clip_grad_norm(trained, max_norm)
    if not total <= max_norm:  # also where it is not a number, as torch's
        foreach_mul(gradients, max_norm / (float(total) + 1e-6))
    return total


def _length(gradients: list[Tensor]) -> Tensor | None:
    """‖g‖ of all gradients as one vector; None where they are not in this process' own memory."""
    squares = sum_of_squares(gradients)
    if squares is not None:
        return torch.tensor(math.sqrt(squares), dtype=torch.float32)
    if not all(is_on_one_cpu(gradient) for gradient in gradients):
        return None
    return torch.linalg.vector_norm(torch.stack([norm(gradient) for gradient in gradients]))


def is_on_one_cpu(tensor: Tensor) -> bool:
    """Whether all of a tensor is in this process' own memory, where a number is read at once."""
    return tensor.is_cpu and not isinstance(tensor, DTensor)
