"""Gaussian noise on the gradients, the same on every process and after every restart."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.training import Place, Scalars, Training
from hf_tfopt.optimizers.checks import check_not_negative, check_positive
from hf_tfopt.optimizers.sharding import local, shard_as


class GradientNoise(Intervention):
    """An intervention: g ← g + N(0, σ²), with σ² = eta / (1 + t)^gamma in update t = 0, 1, ...

    The noise is a function of the seed, the step, the parameter and the place of the number in the
    whole parameter, on one kind of device: the same on every process, for every way to cut the
    batch, after a stop, and for FSDP2's shards, which get their part of it. The random state of the
    run is not touched. It comes after all clipping, and whatever the learning rate.

    σ is of every single number, and no share of the gradient: over n weights the noise is about
    σ·√n long, which is logged to be compared with `grad_norm`. At the default, 10⁷ weights get
    noise of length 1700 at first, a thousand times what a clipped gradient has; the paper's
    networks are small. For a transformer begin with an eta of (grad_norm)² / n or less.

    | name | what |
    |---|---|
    | `gradient_noise_std` | σ of the last update |
    | `gradient_noise_norm` | σ·√n, the noise's expected length over all n numbers that got it |

    Costs about 5 ms for a million weights on a core; nothing is sent between processes. Of each
    sharded tensor every process makes the whole noise, one tensor at a time.

    Args:
        eta: the variance in the first update, above 0; the paper's are 0.01, 0.3 and 1.0.
        gamma: the power of its fall, 0 or above.
        seed: any integer.

    Raises:
        ValueError: a number out of its range; before the first step, an engine that hides the
            gradients.

    Paper: Neelakantan et al. 2015, Adding Gradient Noise Improves Learning for Very Deep Networks,
        https://arxiv.org/abs/1511.06807, equation 1. No difference.
    """

    needs_gradients = True
    place = Place.GRADIENTS

    def __init__(self, eta: float = 0.3, gamma: float = 0.55, seed: int = 0):
        super().__init__()
        check_positive("eta", eta)
        check_not_negative("gamma", gamma)
        self.eta = eta
        self.gamma = gamma
        self.seed = seed
        self._told: Scalars = {}

    def release(self) -> None:
        """Forget the last update."""
        super().release()
        self._told = {}

    def gradients(self, training: Training) -> None:
        """Add the noise of this update."""
        step, parameters = training.state.global_step, training.model.parameters()
        deviation = noise_std(step, self.eta, self.gamma)
        size = add_noise([p.grad for p in parameters], deviation, self.seed, step)
        self._told = {
            "gradient_noise_std": deviation,
            "gradient_noise_norm": deviation * math.sqrt(size),
        }

    def scalars(self, training: Training) -> Scalars:
        """Of the last update."""
        return self._told


def noise_std(step: int, eta: float, gamma: float) -> float:
    """`sqrt(eta / (1 + step) ** gamma)`."""
    return math.sqrt(eta / (1 + step) ** gamma)


@torch.no_grad()
def add_noise(gradients: Sequence[Tensor | None], deviation: float, seed: int, step: int) -> int:
    """Add N(0, deviation²) to every number, see `GradientNoise`.

    Args:
        gradients: of all parameters in the model's order, by which each has its own noise; None is
            passed over.
        deviation: the standard deviation.
        seed: any integer.
        step: the number of updates before.

    Returns:
        How many numbers got noise, of whole tensors.
    """
    generators: dict[torch.device, torch.Generator] = {}
    size = 0
    for number, gradient in enumerate(gradients):
        if gradient is None:
            continue
        device = local(gradient).device
        generator = generators.setdefault(device, torch.Generator(device))
        generator.manual_seed(_key(seed, step, number))
        noise = torch.empty(gradient.shape, device=device).normal_(generator=generator)
        local(gradient).add_(local(shard_as(gradient, noise)), alpha=deviation)
        size += gradient.numel()
    return size


def _key(*numbers: int) -> int:
    # CPU generators read the lower 32 bits alone: all must depend on all
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
