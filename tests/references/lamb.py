"""LAMB the obvious way: float64, one tensor after the other, every norm read out."""

import torch


class NaiveLamb:
    """One tensor under LAMB."""

    def __init__(
        self,
        theta: torch.Tensor,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = True,
        max_trust_ratio: float | None = None,
        is_adaptive: bool = True,
    ):
        self.theta = theta.double().clone()
        self.m, self.v, self.num_steps = (
            torch.zeros_like(self.theta),
            torch.zeros_like(self.theta),
            0,
        )
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, betas, eps
        self.bias_correction, self.max_trust_ratio = bias_correction, max_trust_ratio
        self.is_adaptive, self.trust_ratio = is_adaptive, 1.0

    def step(self, gradient: torch.Tensor) -> None:
        (beta1, beta2), g = self.betas, gradient.double()
        self.num_steps += 1
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        m, v = self.m, self.v
        if self.bias_correction:
            m = m / (1 - beta1**self.num_steps)
            v = v / (1 - beta2**self.num_steps)
        u = m / (v.sqrt() + self.eps) + self.weight_decay * self.theta
        weight_norm, update_norm = self.theta.norm().item(), u.norm().item()
        self.trust_ratio = 1.0
        if self.is_adaptive and weight_norm > 0 and update_norm > 0:
            self.trust_ratio = weight_norm / update_norm
            if self.max_trust_ratio is not None:
                self.trust_ratio = min(self.trust_ratio, self.max_trust_ratio)
        self.theta = self.theta - self.lr * self.trust_ratio * u
