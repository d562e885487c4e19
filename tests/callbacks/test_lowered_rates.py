"""Lowered for good: what follows is the schedule times the factor, whatever the schedule."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedules
from transformers import Trainer, TrainerCallback
from transformers.optimization import GreedyLR

import hf_tfopt as tfo
from hf_tfopt.callbacks.lowered_rates import scale_rates
from tests.callbacks.faults import Fault
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments

SCHEDULES: dict[str, Any] = {
    "none": lambda o: None,
    "lambda": lambda o: torch_schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "exponential": lambda o: torch_schedules.ExponentialLR(o, 0.9),
    "step": lambda o: torch_schedules.StepLR(o, 2),
    "multi_step": lambda o: torch_schedules.MultiStepLR(o, [2, 6]),
    "linear": lambda o: torch_schedules.LinearLR(o, 0.1, 1.0, 6),
    "polynomial": lambda o: torch_schedules.PolynomialLR(o, 9),
    "cosine": lambda o: torch_schedules.CosineAnnealingLR(o, 9, eta_min=0.02),
    "restarts": lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 3, eta_min=0.02),
    "one_cycle": lambda o: torch_schedules.OneCycleLR(o, 0.3, total_steps=12),
    "cyclic": lambda o: torch_schedules.CyclicLR(o, 0.1, 0.3, step_size_up=2),
    "sequence": lambda o: torch_schedules.SequentialLR(
        o,
        [torch_schedules.ConstantLR(o, 0.5, 4), torch_schedules.CosineAnnealingLR(o, 9, 0.01)],
        [5],
    ),
}


def rates_of(make: Any, lr: Any, factor: float) -> list[float]:
    """Scaled before the third update, as a callback does it."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.9)
    schedule, rates = make(optimizer), []
    for step in range(10):
        if step == 2:
            scale_rates(optimizer, schedule, factor)
        rates.append(float(optimizer.param_groups[0]["lr"]))
        weight.grad = torch.ones(2)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return rates


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_later_rate_is_the_schedules_times_the_factor(name: str, is_tensor: bool) -> None:
    def lr() -> Any:
        return torch.tensor(0.1) if is_tensor else 0.1

    plain = rates_of(SCHEDULES[name], lr(), 1.0)
    lowered = rates_of(SCHEDULES[name], lr(), 0.25)
    # a rate that is a tensor is in fp32
    assert lowered == pytest.approx([*plain[:2], *(0.25 * rate for rate in plain[2:])], rel=1e-5)


@pytest.mark.parametrize("make", [torch_schedules.ReduceLROnPlateau, GreedyLR])
def test_those_that_follow_a_metric_go_on_from_the_lower_rate(make: Any) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    schedule = make(optimizer, factor=0.5, patience=1)
    scale_rates(optimizer, schedule, 0.25)
    schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert schedule.get_last_lr() == [pytest.approx(0.025)]


def test_a_rate_that_is_a_tensor_keeps_its_memory() -> None:
    lr = torch.tensor(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=lr)
    scale_rates(optimizer, None, 0.5)
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.05)


class Rates(TrainerCallback):
    """The object that holds the rate, in every step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args, state, control, optimizer=None, **kwargs) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


IN_TRAINING: dict[str, Any] = {
    "exponential": lambda o: torch_schedules.ExponentialLR(o, 1.0),
    "one_cycle": lambda o: torch_schedules.OneCycleLR(o, 1e-3, total_steps=999, div_factor=1.0001),
    "plateau": lambda o: torch_schedules.ReduceLROnPlateau(o),
}


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("name", IN_TRAINING)
def test_the_guard_leaves_the_rate_low(name: str, is_tensor: bool, tmp_path: Path) -> None:
    model = tiny("bert")
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3) if is_tensor else 1e-3)
    schedule = IN_TRAINING[name](optimizer)
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=5, gradient_accumulation_steps=2),
        train_dataset=Rows(40),
        optimizers=(optimizer, schedule),
    )
    tfo.attach(trainer, callbacks=[tfo.StabilityGuard("lower_lr", lr_factor=0.25)])
    Fault("loss", math.nan, (2,)).into(trainer)
    trainer.add_callback(noted := Rates())
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    # one cycle has risen by some millionths
    assert rates[0] == pytest.approx(1e-3, rel=1e-3)
    assert rates[2:] == pytest.approx([0.25 * 1e-3] * 3, rel=1e-3)
    if is_tensor:
        assert all(rate is noted.seen[0] for rate in noted.seen)
