import sys
from typing import Any

import pytest
import torch
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers.schedule_free import schedule_free


class NaiveScheduleFree:
    """One tensor under algorithm 1 of the paper, in float64, with x, y and z written out."""

    def __init__(
        self,
        theta: torch.Tensor,
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        warmup_steps: int = 0,
        step_power: float = 0.0,
        lr_power: float = 2.0,
    ):
        self.x = self.y = self.z = theta.double().clone()
        self.v = torch.zeros_like(self.x)
        self.lr, self.weight_decay, self.betas, self.eps = lr, weight_decay, betas, eps
        self.warmup_steps, self.step_power, self.lr_power = warmup_steps, step_power, lr_power
        self.num_steps, self.sum_of_weights = 0, 0.0

    def step(self, gradient: torch.Tensor) -> None:
        g, (beta1, beta2) = gradient.double(), self.betas
        self.num_steps += 1
        t = self.num_steps
        lr = self.lr * min(1.0, t / self.warmup_steps) if self.warmup_steps else self.lr
        self.v = beta2 * self.v + (1 - beta2) * g**2
        direction = g / ((self.v / (1 - beta2**t)).sqrt() + self.eps)
        self.z = self.z - lr * (direction + self.weight_decay * self.y)
        weight = t**self.step_power * lr**self.lr_power
        self.sum_of_weights += weight
        c = weight / self.sum_of_weights
        self.x = (1 - c) * self.x + c * self.z
        self.y = (1 - beta1) * self.z + beta1 * self.x


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.3, "betas": [0.8, 0.98]},
    {"warmup_steps": 7, "lr_power": 1.0},
    {"warmup_steps": 3, "step_power": 2.0, "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_paper_for_30_steps(options: dict[str, Any]) -> None:
    print("seed 0")
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,))]
    twins = [NaiveScheduleFree(p.detach(), lr=0.05, **options) for p in parameters]
    optimizer: Any = schedule_free(parameters, lr=0.05, **options)
    optimizer.train()
    for _ in range(30):
        for parameter, twin in zip(parameters, twins, strict=True):
            parameter.grad = torch.randn(parameter.shape)
            twin.step(parameter.grad)
        optimizer.step()
    # 30 steps of fp32, whose updates of 0.05 are rounded by 6e-8 of weights near 1
    tolerance = {"rtol": 1e-5, "atol": 2e-6}
    for weights in ("y", "x", "y"):
        (optimizer.eval if weights == "x" else optimizer.train)()
        for parameter, twin in zip(parameters, twins, strict=True):
            expected = getattr(twin, weights)
            torch.testing.assert_close(parameter.detach().double(), expected, **tolerance)
    assert all((twin.x - twin.y).abs().max() > 1e-3 for twin in twins)


def test_groups_have_their_own_rate_and_decay() -> None:
    print("seed 0")
    torch.manual_seed(0)
    groups = [
        {"params": [nn.Parameter(torch.randn(4))], "name": name, "lr": lr, "weight_decay": decay}
        for name, lr, decay in (("slow", 0.01, 0.5), ("fast", 0.1, 0.0))
    ]
    twins = [NaiveScheduleFree(g["params"][0].detach(), g["lr"], g["weight_decay"]) for g in groups]
    optimizer: Any = schedule_free(groups, lr=1.0, weight_decay=9.0)
    optimizer.train()
    for _ in range(5):
        for group, twin in zip(groups, twins, strict=True):
            group["params"][0].grad = torch.randn(4)
            twin.step(group["params"][0].grad)
        optimizer.step()
    for group, twin in zip(groups, twins, strict=True):
        found = group["params"][0].detach().double()
        torch.testing.assert_close(found, twin.y, rtol=1e-5, atol=1e-6)
    assert [group["name"] for group in optimizer.param_groups] == ["slow", "fast"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be a number above 0"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ({"betas": (0.0, 0.9)}, r"betas\[0\] must be a number above 0"),
        ({"eps": -1e-8}, "eps must be"),
        ({"warmup_steps": 0.1}, "a whole number of steps, got 0.1: .* takes no share"),
        ({"warmup_steps": -1}, "a whole number of steps, got -1"),
        ({"warmup_steps": True}, "a whole number of steps, got True"),
        ({"step_power": -1.0}, "step_power must be"),
        ({"lr_power": -1.0}, "lr_power must be"),
    ],
)
def test_mistakes_are_refused_before_there_is_a_model(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.optimizer("schedule_free", **{"lr": 1e-3, **options})


def test_says_how_to_install_the_package(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-tfopt\[schedulefree\]'"):
        tfo.optimizer("schedule_free", lr=1e-3)
