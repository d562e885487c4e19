"""How tasks are weighed, as the papers write it: slow and obvious."""

import math

import torch
from torch import Tensor


def kendall(mean_loss: float, sigma: float, is_regression: bool) -> float:
    """Kendall, Gal and Cipolla 2018, equations 7 (regression) and 10 (classification)."""
    if is_regression:
        return mean_loss / (2 * sigma**2) + math.log(sigma)
    return mean_loss / sigma**2 + math.log(sigma)


def gradnorm_step(
    weights: list[float],
    shared: Tensor,
    losses: list[Tensor],
    initial_losses: list[float],
    alpha: float,
    lr: float,
) -> list[float]:
    """Chen et al. 2018, algorithm 1, by automatic differentiation of L_grad."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    norms = torch.stack(
        [
            torch.autograd.grad(w[i] * loss, shared, create_graph=True)[0].norm()
            for i, loss in enumerate(losses)
        ]
    )
    pace = [
        float(loss.detach()) / initial for loss, initial in zip(losses, initial_losses, strict=True)
    ]
    mean_pace = sum(pace) / len(pace)
    mean_norm = norms.mean().detach()
    total = torch.zeros((), dtype=torch.float64)
    for norm, own in zip(norms, pace, strict=True):
        total = total + (norm - mean_norm * (own / mean_pace) ** alpha).abs()
    (slope,) = torch.autograd.grad(total, w)
    moved = [weight - lr * float(step) for weight, step in zip(weights, slope, strict=True)]
    return [len(moved) * weight / sum(moved) for weight in moved]


def pcgrad(gradients: list[Tensor], orders: list[list[int]]) -> Tensor:
    """Yu et al. 2020, algorithm 1, on the gradients themselves."""
    projected = []
    for i, gradient in enumerate(gradients):
        g = gradient.clone()
        for j in orders[i]:
            if torch.dot(g, gradients[j]) < 0:
                g -= torch.dot(g, gradients[j]) / gradients[j].norm() ** 2 * gradients[j]
        projected.append(g)
    return torch.stack(projected).sum(0)


def multilingual_shares(sizes: list[int], temperature: float) -> list[float]:
    """Exponentially smoothed shares: raise to a power, then normalise again."""
    proportional = [size / sum(sizes) for size in sizes]
    powered = [share ** (1 / temperature) for share in proportional]
    return [power / sum(powered) for power in powered]
