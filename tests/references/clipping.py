"""Clipping and its statistics, number by number and from the beginning each time."""

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def clipped_together(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Tensors shortened as one vector."""
    length = torch.cat([gradient.flatten() for gradient in gradients]).double().norm().item()
    return [gradient * min(1.0, max_norm / length) for gradient in gradients]


def clipped_units(
    gradient: Tensor, weight: Tensor, unit_dim: int | None, clipping: float, eps: float
) -> tuple[Tensor, int]:
    """AGC, and how many units it shortened."""
    if unit_dim is None:
        shorter, number = clipped_units(gradient[None], weight[None], 0, clipping, eps)
        return shorter[0], number
    found, num_shortened = [], 0
    for g, w in zip(gradient.unbind(unit_dim), weight.unbind(unit_dim), strict=True):
        longest = clipping * max(w.double().norm().item(), eps)
        length = g.double().norm().item()
        num_shortened += length > longest
        found.append(g * longest / length if length > longest else g)
    return torch.stack(found, unit_dim), num_shortened


def zclip_norms(norms: Sequence[float], z: float, momentum: float, warmup: int) -> list[float]:
    """The norms of all steps after ZClip."""
    mean, variance = statistics.fmean(norms[:warmup]), statistics.pvariance(norms[:warmup])
    after = list(norms[:warmup])
    for norm in norms[warmup:]:
        deviation = variance**0.5
        score = (norm - mean) / (deviation + 1e-6)
        if score > z:
            severity = score / z
            norm = mean + z * deviation / severity
        after.append(norm)
        mean = momentum * mean + (1 - momentum) * norm
        variance = momentum * variance + (1 - momentum) * (norm - mean) ** 2
    return after


def autoclip_norms(norms: Sequence[float], percentile: float, window: int) -> list[float]:
    """The norms of all steps after AutoClip."""
    after = []
    for step, norm in enumerate(norms):
        ordered = sorted(norms[max(0, step + 1 - window) : step + 1])
        place = percentile / 100 * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        limit = ordered[below] + (place - below) * (ordered[above] - ordered[below])
        after.append(float(np.minimum(norm, limit)))
    return after
