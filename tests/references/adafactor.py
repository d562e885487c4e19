"""Adafactor the obvious way: float64, one tensor after the other, V written out, numbers read."""

import math

import torch


class NaiveAdafactor:
    """One tensor under Adafactor."""

    def __init__(
        self,
        theta: torch.Tensor,
        lr: float,
        weight_decay: float = 0.0,
        relative_step: bool = False,
        scale_parameter: bool | None = None,
        warmup_init: bool = False,
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float = 0.0,
        factored: bool = True,
        eps: tuple[float, float] = (1e-30, 1e-3),
    ):
        self.theta = theta.double().clone()
        self.lr, self.weight_decay = lr, weight_decay
        self.relative_step = relative_step
        self.scale_parameter = relative_step if scale_parameter is None else scale_parameter
        self.warmup_init, self.clip_threshold = warmup_init, clip_threshold
        self.decay_rate, self.beta1, self.eps = decay_rate, beta1, eps
        self.is_factored = factored and theta.ndim >= 2
        self.v = torch.zeros_like(self.theta)  # its rows' and columns' sums are R and C
        self.m = torch.zeros_like(self.theta)
        self.num_steps = 0

    def step(self, gradient: torch.Tensor) -> None:
        g = gradient.double()
        self.num_steps += 1
        t = self.num_steps
        beta2 = 1 - t**-self.decay_rate
        self.v = beta2 * self.v + (1 - beta2) * (g**2 + self.eps[0])
        v = self.v
        if self.is_factored:
            rows, columns = v.sum(dim=-1, keepdim=True), v.sum(dim=-2, keepdim=True)
            v = rows @ columns / v.sum(dim=(-2, -1), keepdim=True)
        u = g / v.sqrt()
        u = u / max(1.0, rms(u) / self.clip_threshold)
        rate = self.lr
        if self.relative_step:
            rate *= min(1e-6 * t if self.warmup_init else 1e-2, 1 / math.sqrt(t))
        size = rate * max(self.eps[1], rms(self.theta)) if self.scale_parameter else rate
        self.m = self.beta1 * self.m + (1 - self.beta1) * size * u
        self.theta = self.theta - rate * self.weight_decay * self.theta - self.m


def rms(x: torch.Tensor) -> float:
    return x.square().mean().sqrt().item()
