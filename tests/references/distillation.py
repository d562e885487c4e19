"""Distillation the obvious way: all logits of both models, and PyTorch's own functions."""

import math

import torch
import torch.nn.functional as F


def naive_divergence(
    logits: torch.Tensor, teacher: torch.Tensor, kind: str, temperature: float, beta: float = 0.5
) -> torch.Tensor:
    """T² D, summed over rows [n, C], one row after the other."""
    total = logits.new_zeros(())
    for z, t in zip(logits, teacher, strict=True):
        q, p = torch.softmax(z / temperature, -1), torch.softmax(t / temperature, -1)
        if kind == "kl":
            value = F.kl_div(q.log(), p, reduction="sum")
        elif kind == "reverse_kl":
            value = F.kl_div(p.log(), q, reduction="sum")
        else:
            m = beta * p + (1 - beta) * q
            value = beta * F.kl_div(m.log(), p, reduction="sum")
            value = value + (1 - beta) * F.kl_div(m.log(), q, reduction="sum")
        total = total + temperature**2 * value
    return total


def naive_distillation(
    logits: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    temperature: float,
    kind: str = "kl",
    beta: float = 0.5,
) -> torch.Tensor:
    """(1 - α) CE + α T² D, the mean over the labelled positions of [..., C]."""
    is_labelled = labels != -100
    z, t, y = logits[is_labelled], teacher[is_labelled], labels[is_labelled]
    soft = naive_divergence(z, t, kind, temperature, beta) / len(y)
    return (1 - alpha) * F.cross_entropy(z, y) + alpha * soft


def naive_top_k_kl(
    logits: torch.Tensor, teacher: torch.Tensor, k: int, temperature: float
) -> float:
    """T² KL over each row's k likeliest classes of the teacher and "any other"."""
    total = 0.0
    for z, t in zip(logits.double(), teacher.double(), strict=True):
        q, p = torch.softmax(z / temperature, -1), torch.softmax(t / temperature, -1)
        top = sorted(range(len(p)), key=lambda i: -float(p[i]))[:k]
        pairs = [(float(p[i]), float(q[i])) for i in top]
        rest = (1 - sum(a for a, _ in pairs), 1 - sum(b for _, b in pairs))
        if k < len(p):
            pairs.append(rest)
        total += temperature**2 * sum(a * math.log(a / b) for a, b in pairs)
    return total
