"""AdamW's amendments the obvious way: float64, one weight after the other."""

import torch


class NaiveAdamWVariant:
    """One tensor under AdamW, cautious, stable or with a decay apart from the lr."""

    def __init__(
        self,
        theta: torch.Tensor,
        peak_lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        cautious: bool = False,
        stable: bool = False,
        decay: str = "lr_coupled",
    ):
        self.theta = [float(x) for x in theta.flatten()]
        self.m, self.v = [0.0] * len(self.theta), [0.0] * len(self.theta)
        self.peak_lr, self.lr, self.weight_decay = peak_lr, peak_lr, weight_decay
        self.betas, self.eps = betas, eps
        self.cautious, self.stable, self.decay = cautious, stable, decay
        self.num_steps = 0

    def step(self, gradient: torch.Tensor) -> None:
        (beta1, beta2), num = self.betas, len(self.theta)
        gradients = [float(x) for x in gradient.flatten()]
        self.num_steps += 1
        directions, squares = [], 0.0
        for i, g in enumerate(gradients):
            self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
            self.v[i] = beta2 * self.v[i] + (1 - beta2) * g * g
            root = (self.v[i] / (1 - beta2**self.num_steps)) ** 0.5
            directions.append(self.m[i] / (1 - beta1**self.num_steps) / (root + self.eps))
            squares += (g / max(root, self.eps)) ** 2 if self.stable else 0.0
        rate = self.lr / max(1.0, (squares / num) ** 0.5)
        num_agreeing = sum(u * g > 0 for u, g in zip(directions, gradients, strict=True))
        num_moved = sum(g != 0 for g in gradients)
        for i, (u, g) in enumerate(zip(directions, gradients, strict=True)):
            if self.cautious:
                u = u * num_moved / (num_agreeing + 1) if u * g > 0 else 0.0
            shrink = rate if self.decay == "lr_coupled" else rate / self.peak_lr
            self.theta[i] = self.theta[i] * (1 - shrink * self.weight_decay) - rate * u
