"""Muon and AdamW the obvious way: float64, one matrix after the other, nothing shared."""

import math

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def naive_newton_schulz(gradient: torch.Tensor, num_steps: int = 5) -> torch.Tensor:
    a, b, c = COEFFICIENTS
    x = gradient.double()
    if x.shape[0] > x.shape[1]:
        return naive_newton_schulz(gradient.T, num_steps).T
    x = x / max(x.norm().item(), 1e-7)
    for _ in range(num_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class NaiveMuon:
    """One matrix under Muon."""

    def __init__(self, theta, lr, weight_decay, momentum, nesterov, scale):
        self.theta, self.average = theta.double().clone(), torch.zeros_like(theta).double()
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.nesterov, self.scale = nesterov, scale

    def step(self, gradient):
        mu, g = self.momentum, gradient.double()
        self.average = mu * self.average + (1 - mu) * g
        direction = mu * self.average + (1 - mu) * g if self.nesterov else self.average
        rows, columns = self.theta.shape
        if self.scale == "original":
            scale = math.sqrt(max(1, rows / columns))
        else:
            scale = 0.2 * math.sqrt(max(rows, columns))
        self.theta = self.theta - self.lr * self.weight_decay * self.theta
        self.theta = self.theta - self.lr * scale * naive_newton_schulz(direction)


class NaiveAdamW:
    """One tensor under AdamW."""

    def __init__(self, theta, lr, weight_decay, betas, eps):
        self.theta = theta.double().clone()
        self.m, self.v, self.num_steps = torch.zeros_like(theta).double(), 0.0, 0
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, betas, eps

    def step(self, gradient):
        (beta1, beta2), g = self.betas, gradient.double()
        self.num_steps += 1
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m_hat = self.m / (1 - beta1**self.num_steps)
        v_hat = self.v / (1 - beta2**self.num_steps)
        self.theta = self.theta - self.lr * self.weight_decay * self.theta
        self.theta = self.theta - self.lr * m_hat / (v_hat.sqrt() + self.eps)
