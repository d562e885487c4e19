"""How the losses or the gradients of several tasks are weighed against one another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_tfopt.losses.reduction import LossSum

# a weight below this would be a task given up, and a negative one a task undone
MIN_WEIGHT = 1e-3


def uncertainty_weighted(
    term: LossSum, log_variance: Tensor, is_regression: bool = False
) -> LossSum:
    """A task's loss weighed by its own noise, which is learnt.

    Its mean equals `exp(-s) * mean + s / 2`, and for a regression `exp(-s) / 2 * mean + s / 2`,
    with s = log σ²: a task without noise would weigh infinitely much, and s / 2 = log σ keeps all
    from being called noise. Smallest at `exp(s) = 2 * mean`, of a regression at `exp(s) = mean`.

    Args:
        term: the task's plain sum and count.
        log_variance: s, a scalar; 0 at first.
        is_regression: whether the loss is a squared error.

    Paper: Kendall, Gal and Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for
    Scene Geometry and Semantics" (https://arxiv.org/abs/1705.07115), equations 7 and 10. Differs:
    s is learnt in place of σ, as the paper advises.
    """
    factor = torch.exp(-log_variance) * (0.5 if is_regression else 1.0)
    return LossSum(factor * term.sum + 0.5 * log_variance * term.count, term.count)


def gradnorm_weights(
    weights: Tensor,
    norms: Tensor,
    losses: Tensor,
    initial_losses: Tensor,
    alpha: float = 1.5,
    lr: float = 0.025,
) -> Tensor:
    """The weights of T tasks after one step of GradNorm.

    With G = weights * norms, the relative inverse training rate r = (L / L(0)) / mean(L / L(0)) and
    the target mean(G) * r^α, which is held constant, the step is down the gradient of
    `sum |G - target|`: `weights - lr * norms * sign(G - target)`, then scaled to a sum of T.

    Args:
        weights: [T], above 0.
        norms: [T], of the gradients of the unweighted losses by the shared layer; 0 for a task that
            was not in the batch, which changes by the scaling alone.
        losses: [T], unweighted.
        initial_losses: [T], those of the first batch, above 0.
        alpha: α, how hard the tasks are held to the same pace; 0 makes their gradients equal.
        lr: step of the weights.

    Paper: Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
    Multitask Networks" (https://arxiv.org/abs/1711.02257), equations 1 and 2 and algorithm 1.
    Differs: plain gradient descent on the weights, which stay at 0.001 or above.
    """
    is_there = norms > 0
    weighted = weights * norms
    pace = torch.where(is_there, losses / initial_losses, 0)
    number = is_there.sum().clamp(min=1)
    rate = pace * number / pace.sum().clamp(min=torch.finfo(pace.dtype).tiny)
    target = weighted.sum() / number * rate**alpha
    moved = weights - lr * norms * torch.sign(weighted - target) * is_there
    moved = moved.clamp(min=MIN_WEIGHT)
    return moved * len(moved) / moved.sum()


def pcgrad_orders(num_tasks: int, seed: int, step: int) -> list[list[int]]:
    """For each task the others in a random order, a function of (seed, step)."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
    orders = [torch.randperm(num_tasks, generator=generator).tolist() for _ in range(num_tasks)]
    return [[other for other in order if other != task] for task, order in enumerate(orders)]


def pcgrad_coefficients(products: Tensor, orders: Sequence[Sequence[int]]) -> Tensor:
    """What of each task's gradient is in the sum of all, once conflicts are projected away.

    For each task i, `g = g_i`, then for j in `orders[i]`: where `g · g_j < 0`,
    `g = g - (g · g_j / g_j · g_j) g_j`. All of these are sums of the T gradients, so that their
    T x T products say everything: the combined gradient is `sum_k coefficients[k] * g_k`.

    Args:
        products: [T, T], `g_i · g_j`.
        orders: for each task the others, in the order they are looked at.

    Returns:
        [T], in float64 on the CPU.

    Paper: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning"
    (https://arxiv.org/abs/2001.06782), algorithm 1; no difference.
    """
    table = products.detach().double().cpu()
    shares = torch.eye(len(table), dtype=torch.float64)  # row i: its gradient as a sum of all
    for task, order in enumerate(orders):
        for other in order:
            product = shares[task] @ table[other]
            if product < 0:  # so the other is not 0
                shares[task, other] -= product / table[other, other]
    return shares.sum(dim=0)
